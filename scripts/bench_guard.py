"""What it costs to look at every step: castiron's guard beside what else there is.

    python scripts/bench.py guard [--models lstm,mlp,…] [--rounds 8] [--write]

All contenders train the same model in one process, a few steps each in turn, in an order that changes from
round to round. What counts is the median over the rounds of the ratio to the bare loop of the same round.
`bare loop again` is the same loop against itself: differences of that size mean nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castiron.torch.guard import StepGuard
from castiron.torch.snapshot import Snapshot
from castiron.torch.transaction import transaction

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "guard.md"
Batch = dict[str, Tensor]


# --- what is trained --------------------------------------------------------------------------------


class LSTM(nn.Module):
    """20,000 words, embedding 128, hidden 256 in both directions; batch 64 of 64 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20_000, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True, bidirectional=True)
        self.head = nn.Linear(512, 2)

    def loss(self, batch: Batch) -> Tensor:
        states, _ = self.lstm(self.embedding(batch["ids"]))
        return F.cross_entropy(self.head(states.mean(1)), batch["label"])

    @staticmethod
    def batch() -> Batch:
        return {"ids": torch.randint(0, 20_000, (64, 64)), "label": torch.randint(0, 2, (64,))}


class MLP(nn.Module):
    """Four layers of 1024, batch 512."""

    rows = 512

    def __init__(self) -> None:
        super().__init__()
        layers = [m for _ in range(4) for m in (nn.Linear(1024, 1024), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(1024, 10))

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.layers(batch["x"]), batch["label"])

    @classmethod
    def batch(cls) -> Batch:
        return {"x": torch.randn(cls.rows, 1024), "label": torch.randint(0, 10, (cls.rows,))}


class LargeBatchMLP(MLP):
    """The same, batch 1024."""

    rows = 1024


class SmallBatchMLP(MLP):
    """The same, batch 64: hardly any arithmetic to a weight."""

    rows = 64


class Transformer(nn.Module):
    """An encoder of 4 layers of 256, 4 heads; batch 16 of 64 vectors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch["x"]).mean(1)), batch["label"])

    @staticmethod
    def batch() -> Batch:
        return {"x": torch.randn(16, 64, 256), "label": torch.randint(0, 10, (16,))}


MODELS: dict[str, Any] = {
    "lstm": LSTM,
    "mlp": MLP,
    "transformer": Transformer,
    "mlp of 1024 rows": LargeBatchMLP,
    "mlp of 64 rows": SmallBatchMLP,
}


# --- contenders -------------------------------------------------------------------------------------

Step = Callable[[Batch], None]


@contextlib.contextmanager
def bare(
    model: Any, optimizer: torch.optim.Optimizer, look: Callable[[], None] | None = None
) -> Iterator[Step]:
    """What a user writes; `look` is called between backward and the optimizer."""

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        model.loss(batch).backward()
        if look is not None:
            look()
        optimizer.step()

    yield step


def guarded(*watch: str) -> Callable[..., Any]:
    """castiron's transaction: policy, guard and snapshot."""

    @contextlib.contextmanager
    def make(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
        policy = {"guard": {"watch": ["loss", "gradients", "buffers", *watch]}}
        with transaction(model, optimizer, policy) as step:
            yield lambda batch: (step(model.loss, batch), None)[1]

    return make


@contextlib.contextmanager
def anomaly(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
    """torch.autograd.detect_anomaly."""
    with bare(model, optimizer) as plain:

        def step(batch: Batch) -> None:
            with torch.autograd.set_detect_anomaly(True):
                plain(batch)

        yield step


@contextlib.contextmanager
def every_parameter(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
    """`p.grad.isfinite().all().item()` for each parameter."""

    def look() -> None:
        for parameter in model.parameters():
            if not parameter.grad.isfinite().all().item():
                raise FloatingPointError

    with bare(model, optimizer, look) as step:
        yield step


@contextlib.contextmanager
def debug_underflow_overflow(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
    """What transformers' DebugUnderflowOverflow does, written anew: a hook on every module formats the least
    and largest magnitude of its parameters, inputs and outputs, and looks for NaN and infinity in them."""
    frames: collections.deque[str] = collections.deque(maxlen=21)

    def told(tensor: Any, name: str) -> str:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return f"not a tensor {name}"
        values = tensor.detach()
        magnitudes = values.abs()
        line = f"{magnitudes.min():8.2e} {magnitudes.max():8.2e} {name}"
        if values.isnan().any().item() or values.isinf().any().item():
            raise ValueError(line)
        return line

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        lines = [told(p, name) for name, p in module.named_parameters(recurse=False)]
        lines += [told(t, f"input[{i}]") for i, t in enumerate(inputs)]
        outputs = output if isinstance(output, tuple) else (output,)
        lines += [told(t, f"output[{i}]") for i, t in enumerate(outputs)]
        frames.append("\n".join(lines))

    handles = [m.register_forward_hook(hook) for m in model.modules()]
    with bare(model, optimizer) as step:
        yield step
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def of_transformers(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
    """transformers' own DebugUnderflowOverflow, where that is installed beside castiron."""
    from transformers.debug_utils import DebugUnderflowOverflow

    DebugUnderflowOverflow(model)  # it keeps itself alive in its hooks, and offers no way to take them off
    with bare(model, optimizer) as step:
        yield step
    for module in model.modules():
        module._forward_hooks.clear()


@contextlib.contextmanager
def hooks(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[Step]:
    """A hook on every module that asks whether its output is finite, forward and backward."""

    def good(value: Any) -> None:
        for tensor in value if isinstance(value, tuple) else (value,):
            if (
                isinstance(tensor, Tensor)
                and tensor.is_floating_point()
                and not tensor.isfinite().all().item()
            ):
                raise FloatingPointError

    handles = [m.register_forward_hook(lambda m, i, o: good(o)) for m in model.modules()]
    inner = [m for m in model.modules() if not list(m.children()) and not isinstance(m, nn.Embedding)]
    handles += [m.register_full_backward_hook(lambda m, i, o: good(o)) for m in inner]
    with bare(model, optimizer) as step:
        yield step
    for handle in handles:
        handle.remove()


CONTENDERS: dict[str, Callable[..., Any]] = {
    "bare loop": bare,
    "bare loop again": bare,
    "castiron": guarded(),
    "castiron, activations too": guarded("activations"),
    "castiron, parameters too": guarded("parameters"),
    "isfinite().item() per gradient": every_parameter,
    "hooks on every module": hooks,
    "like DebugUnderflowOverflow": debug_underflow_overflow,
    "detect_anomaly": anomaly,
}
if importlib.util.find_spec("transformers"):
    CONTENDERS["DebugUnderflowOverflow"] = of_transformers


# --- measuring --------------------------------------------------------------------------------------


def compare(
    name: str, sets: int, rounds: int, steps: int, device: torch.device, contenders: list[str]
) -> dict[str, Any]:
    """Ratios to the bare loop, and the bare loop's milliseconds."""
    torch.manual_seed(0)
    made: Any = MODELS[name]
    batch = {key: value.to(device) for key, value in made.batch().items()}
    state = made().state_dict()
    times: dict[str, list[float]] = {c: [] for c in contenders}
    for _ in range(sets):  # anew, because where a model's memory happens to lie makes a difference
        with contextlib.ExitStack() as stack:
            runs: dict[str, Step] = {}
            for contender in contenders:
                model = made().to(device)
                model.load_state_dict(state)
                # it must not learn: gradients that fall to subnormal numbers take a CPU many times as long
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, fused=True)
                runs[contender] = stack.enter_context(CONTENDERS[contender](model, optimizer))
                for _ in range(2):
                    runs[contender](batch)
            order = list(runs)
            for _ in range(rounds):
                random.shuffle(order)
                for contender in order:
                    times[contender].append(_time(runs[contender], batch, steps, device))
    base = times["bare loop"]
    others = [c for c in contenders if c != "bare loop"]
    middle = {c: statistics.median(t / b for t, b in zip(times[c], base, strict=True)) for c in others}
    return {
        "model": name,
        "step_ms": round(1e3 * statistics.median(base), 3),
        "ratios": {c: round(ratio, 4) for c, ratio in middle.items()},
        "ratios_of_least": {c: round(min(times[c]) / min(base), 4) for c in others},
    }


def _time(run: Step, batch: Batch, steps: int, device: torch.device) -> float:
    """Seconds per step, the least of some; on a GPU the mean, as there steps overlap."""
    if device.type == "cuda":
        run(batch)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            run(batch)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps
    # With one thread the process's own time counts: what others do on the machine is left out.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(steps):  # in the first one caches are another contender's
        start = clock()
        run(batch)
        taken.append(clock() - start)
    return min(taken)


def growth(device: torch.device) -> list[dict[str, Any]]:
    """Microseconds that the guard adds to a step, by number and size of the parameters; beside them those of
    the fused optimizer."""
    found = []
    for count, size in ((10, 1000), (100, 1000), (1000, 1000), (10_000, 1000), (10, 10**5), (10, 10**6)):
        model = nn.Module()
        for i in range(count):
            model.register_parameter(f"p{i}", nn.Parameter(torch.randn(size, device=device)))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        guard, snapshot = StepGuard(model, ("loss", "gradients", "buffers")), Snapshot(model, [optimizer])
        loss = torch.ones((), device=device)

        def watch(guard: StepGuard = guard, snapshot: Snapshot = snapshot, loss: Tensor = loss) -> None:
            guard.begin()
            snapshot.take()
            guard.see_loss(loss)
            guard.see_gradients()
            guard.verdict()

        found.append(
            {
                "tensors": count,
                "elements": size,
                "guard_us": round(1e6 * _median(watch), 1),
                "optimizer_us": round(1e6 * _median(lambda o=optimizer: o.step()), 1),
            }
        )
    return found


def _median(run: Callable[[], Any]) -> float:
    taken = []
    for _ in range(25):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[5:])


# --- telling ----------------------------------------------------------------------------------------


def machine(device: torch.device) -> str:
    """One line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(
            (x.partition(":")[2].strip() for x in text.splitlines() if x.startswith("model name")), name
        )
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


PAGE_TEXT = """\
# What the guard costs

`{command}`, {date}: {where}.

Step time relative to a bare loop (fused AdamW, no clipping): the median over interleaved rounds in one
process, and in brackets the ratio of the least times, which other work on the machine disturbs less. In the
heading the bare loop's milliseconds. *bare loop again* is the control, the loop against itself: differences
of that size mean nothing. With one thread it is the process's own time.

| | {heads} |
|---|{rule}
{rows}

- *castiron* is the whole of `castiron.torch.transaction`: policy, guard and snapshot. With *parameters
  too* it copies parameters and optimizer state before every step, because such a fault shows when the
  optimizer has stepped, and is then taken back.
- *lstm*: 20,000 words, embedding 128, hidden 256, bidirectional, batch 64, length 64. *mlp*: four
  layers of 1024, batch 512 where none is said. *transformer*: 4 encoder layers of
  256, batch 16, length 64. The guard reads every gradient once, an optimizer's step moves seven times
  as much memory: the smaller the batch, the more both weigh.
- *DebugUnderflowOverflow* is that of `transformers`, and there where it is installed; *like* it is a hook of
  the script that does per module what its hook does.

## Growth

Microseconds a step of guard and snapshot by the number of parameters and the elements of each, and
beside them those of the optimizer's own step.

| tensors | elements each | guard | AdamW (fused) |
|---:|---:|---:|---:|
{sizes}
"""


def page(where: str, results: list[dict[str, Any]], grown: list[dict[str, Any]], command: str) -> str:
    """docs/benchmarks/guard.md"""
    rows = []
    for name in (c for c in CONTENDERS if c != "bare loop"):
        cells = (
            f"{r['ratios'][name]:.3f} ({r['ratios_of_least'][name]:.3f})" if name in r["ratios"] else ""
            for r in results
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    sizes = (
        f"| {g['tensors']:,} | {g['elements']:,} | {g['guard_us']:,.0f} | {g['optimizer_us']:,.0f} |"
        for g in grown
    )
    heads = " | ".join(f"{r['model']} ({r['step_ms']:.1f} ms)" for r in results)
    return PAGE_TEXT.format(
        command=command,
        date=datetime.date.today(),
        where=where,
        heads=heads,
        rule="---:|" * len(results),
        rows="\n".join(rows),
        sizes="\n".join(sizes),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.py guard", description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--contenders", help="separated by semicolons; default: all")
    parser.add_argument("--sets", type=int, default=4, help="how often everything is made anew")
    parser.add_argument("--rounds", type=int, default=8, help="rounds in each set")
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[2])}")
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # of `hooks`, and meant so
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    contenders = [c.strip() for c in given.contenders.split(";")] if given.contenders else list(CONTENDERS)
    contenders = ["bare loop", *(c for c in contenders if c != "bare loop")]
    results = []
    for name in given.models.split(","):
        results.append(compare(name, given.sets, given.rounds, given.steps, device, contenders))
        print(json.dumps(results[-1]), flush=True)
    grown = growth(device)
    for row in grown:
        print(json.dumps(row), flush=True)
    if given.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        options = f" --sets {given.sets} --rounds {given.rounds} --steps {given.steps}" + (
            f" --threads {given.threads}" if given.threads else ""
        )
        PAGE.write_text(page(machine(device), results, grown, f"python scripts/bench.py guard{options}"))


if __name__ == "__main__":
    main()
