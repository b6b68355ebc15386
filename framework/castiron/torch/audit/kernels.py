"""What is known of torch's operations: their kinds, and which formats a kernel takes together.

Fake tensors cannot be asked: a Linear of float32 weights on a float64 input passes on them, and raises on
real ones. The table of refusals is held against the real kernels of the installed version by a test.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch

from castiron.torch.dtypes import NARROW

Island = Literal["softmax", "normalization", "reductions", "exponentials", "loss"]

PRODUCTS = frozenset((
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "addr", "addbmm", "linear", "bilinear",
    "trilinear", "convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution",
    "slow_conv2d", "conv_transpose", "mkldnn_rnn_layer", "cudnn_rnn", "lstm_mps",
    "scaled_dot_product_flash_attention", "scaled_dot_product_efficient_attention",
    "scaled_dot_product_cudnn_attention", "scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_flash_attention", "flash_attention",
    "efficient_attention", "mkldnn_linear", "grouped_mm", "scaled_grouped_mm",
    "linear_cross_entropy_batch_chunked", "linear_cross_entropy_batch_chunked_no_reduction",
))  # fmt: skip
"""Operations whose cost is multiplications: the ones that a policy's `compute` is about."""

BACKWARD_PRODUCTS = PRODUCTS | frozenset(("convolution_backward", "mkldnn_rnn_layer_backward"))

ISLANDS: dict[str, Island] = {
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp", "logcumsumexp", "safe_softmax"), "softmax"),
    **dict.fromkeys((
        "layer_norm", "group_norm", "batch_norm", "rms_norm", "fused_rms_norm", "linalg_vector_norm", "norm",
        "var", "std", "var_mean", "std_mean", "batch_norm_legit", "batch_norm_legit_functional",
        "cosine_similarity", "cdist", "pdist", "renorm", "cudnn_batch_norm", "miopen_batch_norm",
    ), "normalization"),
    **dict.fromkeys(("sum", "mean", "prod", "nansum", "cumsum", "cumprod"), "reductions"),
    **dict.fromkeys((
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "rsqrt", "reciprocal", "softplus",
        "sinh", "cosh", "tan", "asin", "acos", "erfinv", "xlogy", "log_sigmoid",
    ), "exponentials"),
    **dict.fromkeys((
        "nll_loss", "nll_loss2d", "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
        "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss", "ctc_loss", "multi_margin_loss",
        "multilabel_margin_loss", "soft_margin_loss", "l1_loss",
    ), "loss"),
}  # fmt: skip
"""Operations that a policy keeps wide, by the field of its `islands` that says so."""

MOVES = frozenset((
    "t", "transpose", "permute", "view", "reshape", "unsafe_view", "expand", "squeeze", "unsqueeze", "detach",
    "alias", "clone", "slice", "select", "as_strided", "split", "split_with_sizes", "chunk", "unbind",
    "contiguous", "lift_fresh", "narrow", "flatten", "constant_pad_nd", "unfold", "movedim", "flip", "roll",
    "index_select", "index", "gather", "repeat", "reshape_alias", "unsafe_split", "diagonal", "copy",
))  # fmt: skip
"""Operations that hand the numbers of their first operand on."""

CASTS = frozenset(("to_copy",))
USER_CASTS = frozenset((
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "float_power", "cdouble", "cfloat",
))  # fmt: skip
"""Methods of a tensor that change its format."""

PROMOTES = frozenset((
    "cat", "stack", "where", "mse_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits", "outer",
    "dist", "hypot", "addcmul", "addcdiv", "kl_div", "addr",
))  # fmt: skip
"""Operations that promote their operands though they are not pointwise by torch's own tag."""


def promotes(func: Any, name: str) -> bool:
    """Whether an operation takes operands of several formats and computes in the widest."""
    return (torch.Tag.pointwise in func.tags or name in PROMOTES) and name not in REFUSES_MIXED


REFUSES_MIXED = frozenset((
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "addbmm", "linear", "mkldnn_rnn_layer",
    "scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_flash_attention",
    "scaled_dot_product_efficient_attention", "scaled_dot_product_cudnn_attention", "huber_loss",
    "binary_cross_entropy", "lerp", "thnn_fused_lstm_cell", "thnn_fused_gru_cell", "cudnn_rnn",
    "grid_sampler_2d", "grid_sampler_3d", "ctc_loss", "prelu", "cdist", "linalg_cross", "heaviside",
    "complex", "polar", "index_copy", "index_add", "index_reduce", "index_put", "index_put_accumulate", "put",
    "embedding_bag", "embedding_bag_forward_only", "unsafe_masked_index_put_accumulate",
))  # fmt: skip
"""Operations that want all floating-point operands in one format. (`huber_loss` raises in backward only.)"""

_REFUSES_INTEGERS = frozenset(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear"))
_NORMS = frozenset((
    "layer_norm", "group_norm", "batch_norm", "batch_norm_legit", "batch_norm_legit_functional",
    "batch_norm_with_update",
))  # fmt: skip
_CLASSES = frozenset(("nll_loss", "nll_loss2d", "nll_loss2d_forward"))


GIVES_THE_FIRST = frozenset(("huber_loss", "soft_margin_loss", "normal"))
"""Operations whose result has the format of their first operand, where fake tensors say the widest."""


def refused(
    op: str, dtypes: Sequence[torch.dtype | None], shapes: Sequence[tuple[int, ...]] = ()
) -> str | None:
    """Why a kernel does not take operands of these formats together; None where it does.

    Args:
        op: name of the operation.
        dtypes: of its tensor operands, in order.
        shapes: of the same, where they are known.
    """
    given = [d for d in dtypes if d is not None]
    floats = [d for d in given if d.is_floating_point]
    if op in ("convolution", "conv_transpose"):
        in_3d = len(shapes) > 1 and len(shapes[1]) == 5
        if in_3d != (op == "conv_transpose"):  # these take a bias of any format
            floats = floats[:2]
        return "operands of one format" if len(set(floats)) > 1 else None
    if op.startswith("linear_cross_entropy"):
        widened = floats[0] in NARROW and floats[1] is torch.float32
        return "operands of one format" if floats[0] is not floats[1] and not widened else None
    if op in REFUSES_MIXED:
        integers = [d for d in given if not d.is_floating_point and op in _REFUSES_INTEGERS]
        if len(set(floats + integers)) > 1:
            return "operands of one format"
    elif op in _NORMS and floats:
        rest = set(floats[1:])
        narrow_input = floats[0] in NARROW and rest <= {torch.float32}
        if not narrow_input and rest - {floats[0]}:
            return "input, weight and bias in one format, or a 16-bit input with float32 weights"
    elif op in _CLASSES and len(given) > 1:
        if given[1] not in (torch.int64, torch.uint8):
            return "class numbers as int64 or uint8"
        if len(floats) > 1 and len(set(floats)) > 1:
            return "class weights in the format of the input"
    elif op == "embedding" and len(given) > 1 and given[1] not in (torch.int64, torch.int32):
        return "ids as int64 or int32"
    return None


@functools.cache
def no_lstm(dtype: torch.dtype, device_type: str) -> str | None:
    """Why the device has no LSTM of this format, asked by running a tiny one; None where it has.

    oneDNN has float16 kernels for some CPUs only, and says so at the first step in words of its own.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # its weights are random numbers
            layer = torch.nn.LSTM(2, 2, dtype=dtype, device="cpu").to(device_type)
            output, _ = layer(torch.zeros(1, 1, 2, device=device_type, dtype=dtype))
            output.sum().backward()
    except RuntimeError as e:
        return str(e).split("\n")[0]
    return None
