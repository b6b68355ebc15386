"""F3xx: the flow of dtypes through operations.

The examples are forwards of a small model (`self.head` is a Linear(8, 4), `x` is float32[16, 8]) unless they
say otherwise; tests run them.
"""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="F301",
        name="implicit-promotion",
        severity="warning",
        what="An operation got floating-point tensors of different formats, and computed in the widest of "
        "them.",
        why="torch promotes elementwise operations in silence: one float64 constant turns everything after "
        "it into float64, a float32 parameter added to bfloat16 activations undoes mixed precision.",
        remedy="Make the operand in the format of the other: x.new_tensor(...), parameter.to(x.dtype), or "
        "torch.from_numpy(array).to(x.dtype).",
        bad="def forward(self, x):\n    return self.head(x) * torch.from_numpy(np.ones(4))",
        good="def forward(self, x):\n    return self.head(x) * torch.from_numpy(np.ones(4)).to(x.dtype)",
    ),
    Rule(
        code="F302",
        name="float64-undeclared",
        severity="error",
        what="A float64 tensor is made or computed with, and the policy declares none.",
        why="NumPy, default_collate of Python floats and torch.tensor(np.float64(1)) give float64. It "
        "computes two to four times slower on a CPU and up to 64 times slower on a GPU, and spreads to what "
        "it meets.",
        remedy="State the format where the tensor is made (dtype=torch.float32), or declare float64.",
        bad="def forward(self, x):\n    return self.head(x).double().tanh()",
        good="def forward(self, x):\n    return self.head(x).tanh()",
    ),
    Rule(
        code="F303",
        name="compute-not-as-planned",
        severity="error",
        what="A matrix product, convolution, recurrent layer or attention computes in another format than "
        "planned.",
        why="Frameworks follow the operands, not the declaration: the speed, the memory and the rounding "
        "that were declared are not what runs, and nothing says so.",
        remedy="Give the operands the planned format, or declare a layer rule for this module.",
        bad="def forward(self, x):  # bf16-mixed\n    with torch.autocast('cpu', dtype=torch.float16):\n"
        "        return self.head(x)",
        good="def forward(self, x):  # bf16-mixed\n    return self.head(x)",
    ),
    Rule(
        code="F304",
        name="cast-in-user-code",
        severity="warning",
        what="Code casts a tensor to another format than the plan has there (.float(), .half(), .to(dtype)).",
        why="The cast goes before the policy: what follows it runs in a format that nobody declared. To a "
        "narrower format it also loses digits or range.",
        remedy="Remove the cast and declare the format: a layer rule or an island.",
        bad="def forward(self, x):\n    return self.head(x).half().tanh()",
        good="def forward(self, x):\n    return self.head(x).tanh()",
    ),
    Rule(
        code="F305",
        name="autocast-switched-off",
        severity="error",
        what="Code switches autocast off around an operation that is planned in 16 bits.",
        why="What is inside runs in the format of its operands, unseen by the policy, and mixed operands "
        "raise.",
        remedy="Remove torch.autocast(enabled=False), and declare the layers that are to stay wide: layers: "
        '{"head": {compute: float32}}.',
        bad="def forward(self, x):  # bf16-mixed\n    with torch.autocast('cpu', enabled=False):\n"
        "        return self.head(x.float())",
        good="def forward(self, x):  # bf16-mixed\n    return self.head(x)",
    ),
    Rule(
        code="F306",
        name="operands-refused",
        severity="error",
        what="An operation is given operands of formats that its kernel does not take together.",
        why="On real tensors it raises, with a message that names neither the layer nor the line (on fake "
        "and meta tensors it passes).",
        remedy="Cast one operand to the format of the others before the operation.",
        bad="def forward(self, x):\n    return self.head(x.double())",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F307",
        name="dtype-error",
        severity="error",
        what="The framework stopped with an error about formats.",
        why="Its message says which formats met in which kernel; castiron adds the layer, the line, the "
        "operands and what to do.",
        remedy="Cast the operand that is not in the planned format.",
        bad="def forward(self, x):\n    return F.embedding(x, self.head.weight)",
        good="def forward(self, x):\n    return F.embedding(x.argmax(-1) % 4, self.head.weight)",
    ),
    Rule(
        code="F308",
        name="island-in-low-precision",
        severity="error",
        what="An operation that the policy keeps wide (softmax, norm, exponential, sum, loss) gets 16-bit "
        "operands.",
        why="Sums of 16-bit numbers stop growing at 256 (bfloat16) or 2,048 (float16) equal terms; exp "
        "overflows float16 beyond 11.09; a variance loses all its digits.",
        remedy="Leave the operation to the policy: no dtype= of 16 bits, no out= and no in-place form "
        "(these go round the islands). Or declare it: islands: {softmax: null}.",
        bad="def forward(self, x):  # bf16-mixed\n    return self.head(x).softmax(-1, dtype=torch.bfloat16)",
        good="def forward(self, x):  # bf16-mixed\n    return self.head(x).softmax(-1)",
    ),
    Rule(
        code="F309",
        name="cast-ping-pong",
        severity="warning",
        what="A tensor is cast to another format and back with nothing computed between.",
        why="It reads and writes the tensor twice for nothing, and a narrow format in between rounds every "
        "value.",
        remedy="Remove both casts.",
        bad="def forward(self, x):\n    return self.head(x.bfloat16().float())",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F310",
        name="loss-not-as-declared",
        severity="error",
        what="The loss that a training step returns is not in the policy's loss format.",
        why="A float64 target makes the whole loss and its backward pass float64; a float16 one makes the "
        "loss float16, which overflows at 65,504. Frameworks say nothing.",
        remedy="Cast outputs and targets to the declared format before the loss, or declare `loss:`.",
        bad="loss = F.mse_loss(outputs, torch.from_numpy(targets))  # float64, as NumPy made them",
        good="loss = F.mse_loss(outputs.float(), torch.from_numpy(targets).float())",
    ),
    Rule(
        code="F311",
        name="output-not-as-declared",
        severity="error",
        what="A layer, or the model, hands on another format than its row of the plan says.",
        why="The next layer computes in what it is given; a result in a narrower format than declared has "
        "lost digits that somebody relies on.",
        remedy="Remove the cast at the end of the layer's forward, or declare its `output`.",
        bad="def forward(self, x):\n    return self.head(x).bfloat16()",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F312",
        name="stored-not-as-planned",
        severity="error",
        what="A parameter, a buffer or a gradient is not in the format of the plan after a step.",
        why="Code that replaces a tensor's data, or makes a tensor in its first forward, goes round the "
        "plan.",
        remedy="Make the tensor in __init__, and do not change its format afterwards.",
        bad="def forward(self, x):\n    self.head.bias.data = self.head.bias.data.half()\n"
        "    return x @ self.head.weight.T",
        good="def forward(self, x):\n    return x @ self.head.weight.T",
    ),
    Rule(
        code="F313",
        name="optimizer-state-not-as-planned",
        severity="error",
        what="The optimizer keeps its state (moments, averages) in another format than the policy's `state`.",
        why="torch's optimizers follow the parameter: bfloat16 moments lose updates below 1/256 of their "
        "size.",
        remedy="Let castiron make or wrap the optimizer, or declare `state:`.",
        bad="optimizer = torch.optim.AdamW(model.bfloat16().parameters())  # bf16-true",
        good="optimizer = torch.optim.AdamW(model.parameters())",
    ),
    Rule(
        code="F314",
        name="master-weights-missing",
        severity="error",
        what="The policy declares a wide master copy of narrow parameters, and the optimizer updates them "
        "directly.",
        why="An update smaller than half a spacing of the weight rounds to nothing: with bfloat16 and a "
        "learning rate of 1e-4 a weight of 1.0 never moves.",
        remedy="Pass the optimizer through castiron (Trainer, or castiron.torch's master weights).",
        bad="optimizer = torch.optim.SGD(model.bfloat16().parameters(), lr=1e-3)  # bf16-true",
        good="optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # bf16-mixed",
    ),
    Rule(
        code="F315",
        name="integer-in-small-float",
        severity="error",
        what="Integers (ids, positions, counts) are put into a float format that cannot hold them exactly.",
        why="bfloat16 holds integers exactly up to 256, float16 up to 2,048, float32 up to 16,777,216: "
        "beyond it id 2,909 becomes 2,912, which is another word.",
        remedy="Keep ids and counts as integers, or make them in float32.",
        bad="def forward(self, x):\n    positions = torch.arange(1000, dtype=torch.bfloat16)\n"
        "    return self.head(x) + positions.sum().float()",
        good="def forward(self, x):\n    positions = torch.arange(1000)\n    return self.head(x) + "
        "positions.sum()",
    ),
    Rule(
        code="F316",
        name="accumulation-in-low-precision",
        severity="warning",
        what="A sum is carried on, term by term, in a 16-bit tensor.",
        why="Once the sum is 256 times (bfloat16) or 2,048 times (float16) a term, adding the term changes "
        "nothing.",
        remedy="Accumulate in float32: total = torch.zeros((), dtype=torch.float32).",
        bad="def forward(self, x):\n    total = torch.zeros((), dtype=torch.bfloat16)\n"
        "    for row in self.head(x):\n        total += row.mean().bfloat16()\n    return total.float()",
        good="def forward(self, x):\n    total = torch.zeros(())\n    for row in self.head(x):\n"
        "        total = total + row.mean()\n    return total",
    ),
    Rule(
        code="F317",
        name="loss-grows-by-broadcast",
        severity="error",
        what="Outputs and targets differ in shape, and the loss compares every one with every other.",
        why="Outputs [B, 1] against targets [B] broadcast to [B, B]: the model learns the mean of all "
        "targets. torch warns at most; a loss written by hand says nothing.",
        remedy="Give both one shape: outputs.squeeze(-1), or targets.unsqueeze(-1).",
        bad="loss = F.mse_loss(outputs[:, :1], targets[:, 0])  # [16, 1] and [16]",
        good="loss = F.mse_loss(outputs[:, 0], targets[:, 0])",
    ),
    Rule(
        code="F318",
        name="batch-axis-lost",
        severity="error",
        what="No axis of the output is as long as the batch.",
        why="A reshape across the batch axis mixes samples: (4, 14, 14) seen as (1, 784) gives one "
        "prediction for four images, without an error.",
        remedy="Keep the batch axis in every reshape: x.flatten(1), x.reshape(len(x), -1).",
        bad="def forward(self, x):\n    return self.head(x.reshape(-1, 8)[::2])",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F319",
        name="loss-unsafe-in-autocast",
        severity="error",
        what="A loss takes the logarithm of 16-bit probabilities: binary_cross_entropy under autocast; in "
        "TensorFlow binary_crossentropy after a sigmoid in 16 bits.",
        why="A 16-bit probability rounds to 0 or 1, and its logarithm is infinite: torch refuses it on CUDA. "
        "Keras clips it in float32, and then its gradient is zero: a warning.",
        remedy="Use binary_cross_entropy_with_logits (from_logits=True) on the outputs before the sigmoid.",
        bad="loss = F.binary_cross_entropy(outputs.sigmoid(), targets)  # bf16-mixed",
        good="loss = F.binary_cross_entropy_with_logits(outputs, targets)",
    ),
    Rule(
        code="F320",
        name="scalar-out-of-range",
        severity="error",
        what="A number in the code does not fit into the 16-bit tensor that it is combined with.",
        why="float16 ends at 65,504: a mask of -1e9 becomes -inf, and a row of them NaN after softmax.",
        remedy="Use torch.finfo(x.dtype).min for masks, or compute it in float32.",
        bad="def forward(self, x):  # fp16-mixed\n    return self.head(x) * 1e5",
        good="def forward(self, x):  # fp16-mixed\n    return self.head(x) * 10",
    ),
    Rule(
        code="F321",
        name="epsilon-vanishes",
        severity="warning",
        what="A small number that guards a division or logarithm is zero in the tensor's format.",
        why="The smallest number above zero of float16 is 6e-08: an eps of 1e-8 or 1e-12 guards nothing.",
        remedy="Compute it in float32, or take an eps that the format has: torch.finfo(x.dtype).tiny.",
        bad="def forward(self, x):  # fp16-mixed\n    return self.head(x).relu() + 1e-8",
        good="def forward(self, x):  # fp16-mixed\n    return self.head(x).relu() + 1e-4",
    ),
    Rule(
        code="F322",
        name="tf32-not-as-declared",
        severity="error",
        what="The switch for tf32 of matrix products or convolutions is not as the policy declares.",
        why="With it on, float32 products round their operands to 10 bits: three digits instead of seven. "
        "Libraries switch it on for the whole process.",
        remedy="Declare tf32, or run in castiron's contexts, which set the switch and put it back.",
        bad="torch.backends.cuda.matmul.allow_tf32 = True  # float32",
        good="torch.backends.cuda.matmul.allow_tf32 = False",
    ),
    Rule(
        code="F323",
        name="denormals-flushed",
        severity="warning",
        what="This process turns subnormal numbers into zero. (TensorFlow always does.)",
        why="A library built with -ffast-math may switch it on for everybody. Small gradients vanish "
        "earlier than the format says.",
        remedy="Call torch.set_flush_denormal(False) after the libraries are imported.",
        bad="torch.set_flush_denormal(True)",
        good="torch.set_flush_denormal(False)",
    ),
    Rule(
        code="F324",
        name="no-such-kernel",
        severity="error",
        what="The device has no kernel of this operation for the format that it gets.",
        why="It raises at the first step, or gives results that are known to be wrong.",
        remedy="Declare another format for this layer: a layer rule.",
        bad="nn.LSTM(8, 8).half()  # on a CPU: torch.backends.mkldnn has no float16 LSTM",
        good="nn.LSTM(8, 8)",
    ),
    Rule(
        code="F325",
        name="repeated-weight-cast",
        severity="warning",
        what="The same weight is cast again and again within one forward pass.",
        why="Every cast reads and writes the whole weight; autocast keeps one cast per pass only of "
        "parameters that it casts itself.",
        remedy="Cast once before the loop, or leave the cast to the policy.",
        bad="def forward(self, x):\n    for _ in range(4):\n"
        "        y = F.linear(x.bfloat16(), self.head.weight.bfloat16())\n    return y.float()",
        good="def forward(self, x):\n    return F.linear(x, self.head.weight)",
    ),
    Rule(
        code="F326",
        name="traced-by-a-real-step",
        severity="info",
        what="The model cannot be traced on fake tensors; one real step on a small batch was traced instead.",
        why="Control flow that depends on values needs values.",
        remedy="Nothing to do. The step was run on a copy; the model is as it was.",
        bad="def forward(self, x):\n    return self.head(x) if x.sum() > 0 else self.head(-x)",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F327",
        name="not-traced",
        severity="error",
        what="The model could not be run with the example batch, for a reason that has nothing to do with "
        "formats.",
        why="What does not run cannot be audited.",
        remedy="Mend the error, or pass a batch that the model takes: castiron.audit(model, batch, "
        "loss=...).",
        bad="def forward(self, x):\n    return self.head(x[:, :3])",
        good="def forward(self, x):\n    return self.head(x)",
    ),
    Rule(
        code="F328",
        name="part-not-traced",
        severity="info",
        what="A part of the step (loss, optimizer) was not there to be audited.",
        why="The certificate covers what was traced.",
        remedy="Pass it: castiron.audit(model, batch, loss=..., optimizer=...).",
        bad="castiron.audit(model, batch)",
        good="castiron.audit(model, batch, loss=loss, optimizer=optimizer)",
    ),
    Rule(
        code="F329",
        name="certificate-unreadable",
        severity="error",
        what="The audit's certificate (audit.json) of a run is missing or cannot be read.",
        why="What was not audited cannot be vouched for.",
        remedy="Audit again: castiron audit CONFIG.",
    ),
    Rule(
        code="F340",
        name="shape-not-as-declared",
        severity="error",
        what="A layer is given, or hands on, a tensor of another shape than is declared for it.",
        why="Axes in another order (time before batch, channels last) often run without an error, and the "
        "model learns from numbers that lie in the wrong places.",
        remedy="Put the axes in the declared order (transpose, permute), or mend the declaration.",
        bad="shapes = {'head': 'batch 8 -> batch 3'}  # head gives 4",
        good="shapes = {'head': 'batch 8 -> batch 4'}",
    ),
    Rule(
        code="F341",
        name="mean-over-the-wrong-axis",
        severity="warning",
        what="A sum over one axis is divided by the length of another.",
        why="It is no mean: the result is off by the ratio of the two lengths, and may change with the "
        "batch size.",
        remedy="Divide by the length of the axis that was summed over, or use mean(dim).",
        bad="def forward(self, x):\n    h = self.head(x)\n    return h.sum(1) / len(h)",
        good="def forward(self, x):\n    return self.head(x).mean(1)",
    ),
    Rule(
        code="F342",
        name="known-bad-in-this-format",
        severity="warning",
        what="An operation or an optimizer is known to give wrong numbers in the format that it has here.",
        why="Adding up by index in 16 bits stops counting, coordinates of 16 bits miss pixels, Adam's eps "
        "of 1e-8 is zero in float16, and its second moment in bfloat16 never falls again. TensorFlow's CPU "
        "kernels sum the gradient of a bias in bfloat16.",
        remedy="Compute it in float32: a layer rule, .float() before it, or `state: float32`.",
        bad="def forward(self, x):\n    ones = torch.ones(1000, dtype=torch.bfloat16)\n"
        "    counts = ones.new_zeros(2).index_add(0, torch.zeros(1000, dtype=torch.int64), ones)\n"
        "    return self.head(x) + counts.sum().float()",
        good="def forward(self, x):\n    counts = torch.zeros(2).index_add(\n"
        "        0, torch.zeros(1000, dtype=torch.int64), torch.ones(1000)\n    )\n"
        "    return self.head(x) + counts.sum()",
    ),
    Rule(
        code="F360",
        name="variance-by-difference",
        severity="info",
        what="A variance is computed as the mean of squares less the square of the mean.",
        why="Where the mean is large beside the spread the two are nearly equal, and their leading digits "
        "cancel: in float32 the deviation of a thousand times 1000.1 comes out as 0.61, that of sixty-four "
        "times as the root of a negative number.",
        remedy="Take the mean of squared deviations: x.var(unbiased=False), or (x - "
        "x.mean()).square().mean().",
        bad="def forward(self, x):\n    h = self.head(x)\n    return (h * h).mean() - h.mean() ** 2",
        good="def forward(self, x):\n    h = self.head(x)\n    return h.var(unbiased=False)",
    ),
)
