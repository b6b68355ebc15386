"""The frameworks' own errors about formats, in words that help."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from castiron.diagnostics import AuditError, CastironError, Finding, finding
from castiron.torch.audit.lines import lines_of
from castiron.torch.audit.records import Failure
from castiron.training.source_lines import place


@dataclass(frozen=True, slots=True)
class Translation:
    """What an error of torch's means."""

    code: str
    pattern: str
    says: str
    """What is wrong, with groups of the pattern as {0}, {1}."""
    expected: str
    remedy: str


_CAST = "Cast the operand that is not in the planned format: x.to(weight.dtype)."
_IDS = "Keep ids integers: ids.long()."

TRANSLATIONS: tuple[Translation, ...] = (
    Translation(
        "F306", r"mat1 and mat2 must have the same dtype, but got (\w+) and (\w+)",
        "a matrix product got {0} and {1}", "both operands in one format", _CAST,
    ),
    Translation(
        "F306", r"expected m1 and m2 to have the same dtype, but got: (\w+) != (\w+)",
        "a matrix product got {0} and {1}", "both operands in one format", _CAST,
    ),
    Translation(
        "F306", r"Input type \((\w+)\) and (?:bias|weight) type \((\w+)\) should be the same",
        "a convolution got {0} input and {1} weights", "input and weights in one format", _CAST,
    ),
    Translation(
        "F306", r"RNN input dtype \((?:torch\.)?(\w+)\) does not match weight dtype \((?:torch\.)?(\w+)\)",
        "a recurrent layer of {1} weights got {0} input", "input in the format of the weights",
        "Cast the input to the format of the weights, or declare a layer rule for the layer.",
    ),
    Translation(
        "F306", r"get_mkldnn_dtype: unsupported data type",
        "oneDNN got a float64 state (h0, c0) for a recurrent layer", "input, weights, states in one format",
        "Make the initial states like the input: x.new_zeros(...).",
    ),
    Translation(
        "F324", r"could not create a primitive descriptor for the LSTM",
        "oneDNN has no LSTM for this format on this CPU", "float32 or bfloat16",
        "Give the LSTM a layer rule: layers: {lstm: {compute: float32}}; see that its states have its "
        "format.",
    ),
    Translation(
        "F306", r"mixed dtype \(CPU\): all inputs must share same datatype",
        "a normalisation layer got input in another format than its weights",
        "input and weights in one format (16-bit input with float32 weights is allowed)", _CAST,
    ),
    Translation(
        "F307", r"result type (\w+) can't be cast to the desired output type (\w+)",
        "a loss or an in-place operation computes in {0} and is to be stored as {1}",
        "a floating-point target",
        "Cast targets to float: labels.float().",
    ),
    Translation(
        "F307", r"Subtraction, the `-` operator, with (?:two bool tensors|a bool tensor) is not supported",
        "a difference of booleans, in a loss with boolean labels", "floating-point or integer operands",
        "Cast labels to float: labels.float().",
    ),
    Translation(
        "F306", r"Found dtype (\w+) but expected (\w+)",
        "a loss or its backward got {0} where {1} is needed", "outputs and targets in one format",
        "Cast targets to the format of the outputs.",
    ),
    Translation(
        "F307", r"expected target dtype to be Long or Byte, but got (\w+)",
        "class numbers came as {0}", "class numbers as int64 (or uint8), or probabilities [B, C]",
        "Cast class numbers: labels.long().",
    ),
    Translation(
        "F307", r"expected scalar type (\w+) but found (\w+)",
        "a kernel wants {0} and got {1}", "operands in one format", _CAST,
    ),
    Translation(
        "F307", r"Expected tensor for argument #1 'indices' to have one of the following scalar types",
        "an embedding got ids that are no int64 or int32", "ids as int64 or int32", _IDS,
    ),
    Translation(
        "F307", r"(?:indices|index) must be (?:either )?(?:int32 or int64|long|an? .*(?:Long|Int))",
        "an embedding got ids that are no int64 or int32", "ids as int64 or int32", _IDS,
    ),
    Translation(
        "F307", r"'list' object has no attribute 'dim'",
        "a layer got a Python list in place of a tensor", "a tensor",
        "Make it a tensor of the declared format: torch.tensor(values, dtype=torch.float32).",
    ),
    Translation(
        "F307", r"Can't call numpy\(\) on Tensor that requires grad",
        "a tensor that needs gradients meets a NumPy array", "tensors only",
        "Make the array a tensor first: torch.from_numpy(array).to(x.dtype).",
    ),
    Translation(
        "F307", r"unsupported operand type\(s\) for .*'numpy\.ndarray' and 'Tensor'",
        "a NumPy array stands left of a tensor", "tensors only",
        "Make the array a tensor first: torch.from_numpy(array).to(x.dtype).",
    ),
    Translation(
        "F307", r"attempting to assign a gradient with dtype '(\w+)' to a tensor with grad_dtype '(\w+)'",
        "a gradient in {0} is put on a parameter that wants {1}", "the gradient in the parameter's format",
        "Cast it: p.grad = gradient.to(p.dtype).",
    ),
    Translation(
        "F307", r"Attempting to unscale FP16 gradients",
        "the loss scaler got float16 gradients: the parameters themselves are float16",
        "float32 parameters (fp16-mixed), or a float32 master copy (fp16-true)",
        "Declare fp16-mixed, or fp16-true, which keeps master weights.",
    ),
    Translation(
        "F307", r"expected dtype (\w+) for `?(\w+)`? but got dtype (\w+)",
        "an operation wants {0} for '{1}' and got {2}: the model's format changed after the optimizer's "
        "first step",
        "one format from the first step on",
        "Cast the model before the first step, or make the optimizer anew.",
    ),
    Translation(
        "F319", r"binary_cross_entropy and torch\.nn\.BCELoss are unsafe to autocast",
        "binary_cross_entropy takes probabilities under autocast", "binary_cross_entropy_with_logits",
        "Use binary_cross_entropy_with_logits on the outputs before the sigmoid.",
    ),
    Translation(
        "F306", r"(?:Expected query, key, and value|expected .*) to have the same dtype",
        "an operation got operands of several formats", "operands of one format", _CAST,
    ),
    Translation(
        "F307", r"value cannot be converted to type (.*) without overflow",
        "a number in the code does not fit into {0}", "a number that the format holds",
        "Use torch.finfo(x.dtype).min for masks.",
    ),
    Translation(
        "F306", r"(?:scatter|index_\w+)\S*: [Ee]xpected self.*to (?:be equal to|have the same)",
        "values are written into a tensor of another format", "values in the format of the tensor", _CAST,
    ),
    Translation(
        "F307", r"(\S+): Low precision dtypes not supported\. Got (?:torch\.)?(\w+)",
        "the kernel {0} does not exist for {1}", "float32 or float64",
        "Compute it in float32, or declare a layer rule.",
    ),
    Translation(
        "F307", r"Unsupported dtype (\w+)$",
        "the kernel does not exist for {0}", "float32 or float64",
        "Compute it in float32, or declare a layer rule.",
    ),
    Translation(
        "F307", r"\"(\S+)\" not implemented for '(\w+)'",
        "the kernel {0} does not exist for {1}", "a format that the kernel has",
        "Compute it in float32, or declare a layer rule.",
    ),
)  # fmt: skip
"""Errors of torch 2.11 to 2.13, as they were met."""


def translate(message: str) -> Callable[..., Finding] | None:
    """A maker of findings for an error's message; None where it is not about formats."""
    for t in TRANSLATIONS:
        met = re.search(t.pattern, message)
        if met is not None:
            groups = [_format(g) for g in met.groups()]

            def make(*, t: Translation = t, groups: list[str] = groups, **where: Any) -> Finding:
                return finding(
                    t.code,
                    t.says.format(*groups),
                    expected=t.expected,
                    remedy=t.remedy,
                    error=message,
                    **where,
                )

            return make
    return None


@contextlib.contextmanager
def dtype_errors(model: nn.Module) -> Iterator[None]:
    """Within it the framework's errors about formats are raised as AuditError: layer, line, formats, remedy.

    Raises:
        AuditError: from an error about formats (F306, F307, F319, F324). Other errors pass as they are.
    """
    try:
        yield
    except CastironError:
        raise
    except Exception as e:
        make = translate(str(e))
        if make is None:
            raise
        where = place(lines_of(e), _layer_of(e, model), None, None)
        raise AuditError(make(place=where)) from e


def _layer_of(error: BaseException, model: nn.Module) -> str | None:
    """Path of the innermost layer in an error's traceback."""
    paths = {id(module): path for path, module in model.named_modules()}
    found: str | None = None
    trace = error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def explain(failure: Failure) -> Finding:
    """What stopped a trace: an error about formats translated, any other as it is."""
    message = str(failure.error).strip().split("\n")[0]
    where = place(failure.lines, failure.module, failure.call, failure.phase)
    operands = ", ".join(map(str, failure.operands))
    make = translate(str(failure.error))
    if make is not None:
        return make(place=where, received=operands or None)
    return finding(
        "F327",
        f"the {failure.phase} pass stopped with {type(failure.error).__name__}: {message[:300]}",
        place=where,
        received=operands or None,
    )


_NAMES = {
    "Double": "float64", "double": "float64", "Float": "float32", "float": "float32", "Half": "float16",
    "c10::Half": "float16", "at::Half": "float16", "half": "float16", "BFloat16": "bfloat16",
    "c10::BFloat16": "bfloat16", "at::BFloat16": "bfloat16", "Long": "int64", "long int": "int64",
    "long": "int64", "Int": "int32", "int": "int32", "Bool": "bool", "Byte": "uint8", "Char": "int8",
    "Short": "int16",
}  # fmt: skip


def _format(name: str) -> str:
    return _NAMES.get(name, name)
