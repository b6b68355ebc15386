"""Writes down every operation of a step: its formats, its layer, the user's line.

Two views of the same step: torch's functions as Python calls them (before autocast), and the operations that
reach the dispatcher (after it). An operation knows the call that it runs in, so that a cast of the user's can
be told from one of autocast's. In backward the running node of autograd names, by its sequence number, the
operation of the forward pass.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from castiron.torch.audit.kernels import GIVES_THE_FIRST
from castiron.torch.audit.lines import called_by_user, lines_of, lines_running
from castiron.torch.audit.records import Call, Failure, LayerOutput, Op, Origin, Trace, Value
from castiron.torch.replay.names import aten_name, op_name
from castiron.training.audit import Phase, TensorFormat

_SKIPPED = frozenset((
    "device", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_contiguous",
    "is_strides_like_format", "is_non_overlapping_and_dense", "size", "stride", "storage_offset", "detach",
    "alias", "lift", "_has_compatible_shallow_copy_type",
))  # fmt: skip
"""Questions and handles: nothing runs."""
_QUIET = frozenset((
    "__get__", "__set__", "requires_grad_", "retain_grad", "register_hook", "size", "dim", "stride", "numel",
    "is_floating_point", "is_complex", "__len__", "__hash__", "__repr__", "data_ptr", "is_contiguous",
))  # fmt: skip


class Recorder:
    """Records one step into a `Trace`. Use it as `with recorder.recording():` and set `phase` on the way.

    Args:
        paths: modules with their paths.
        device_type: whose autocast is looked at.
        keep: keep every tensor alive while recording (fake ones cost nothing), so that ids are unique.
        count: count FLOPs.
    """

    def __init__(
        self, paths: Mapping[nn.Module, str], device_type: str, *, keep: bool, count: bool = True
    ) -> None:
        self.trace = Trace()
        self.phase: Phase = "forward"
        self._paths, self._device_type, self._keep = paths, device_type, keep
        self._modules: list[tuple[int, str | None]] = []
        self._call: Call | None = None
        self._known: dict[int, tuple[Any, Value]] = {}
        self._stored: dict[int, Value] = {}
        self._by_node: dict[int, Op] = {}
        self._flops = _formulas() if count else {}
        self._function, self._dispatch = _Functions(self), _Dispatch(self)

    # --- what was there before ---------------------------------------------------------------------

    def declare(self, tensor: Tensor, origin: Origin) -> None:
        """A tensor that was there before the first operation."""
        self._remember(tensor, Value(tensor.dtype, tuple(tensor.shape), None, origin))

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor now."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        stored = self._stored.get(_storage(tensor))
        if stored is not None and stored.dtype is tensor.dtype:
            return stored
        value = Value(tensor.dtype, tuple(tensor.shape), None, Origin("outside", ""))
        return self._remember(tensor, value)

    # --- recording ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[Trace]:
        """Everything that runs within is recorded."""
        entered = register_module_forward_pre_hook(self._enter)
        left = register_module_forward_hook(self._leave)
        try:
            with _eager(), self._function, self._dispatch:
                yield self.trace
        except Exception as e:
            if self.trace.failure is None:
                self.failed(e)
            raise
        finally:
            entered.remove()
            left.remove()

    def failed(self, error: BaseException, operands: tuple[TensorFormat, ...] = ()) -> None:
        """Write down where an error came from, once."""
        if self.trace.failure is not None:
            return
        call = self._call
        lines = call.lines if call is not None else lines_of(error)
        name = call.name if call is not None else None
        self.trace.failure = Failure(error, self.phase, self.module, name, operands, lines)

    @property
    def module(self) -> str | None:
        return next((path for _, path in reversed(self._modules) if path is not None), None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._modules.append((id(module), self._paths.get(module)))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # after an error nobody leaves: the innermost layer stays known until the error is written down
        while self._modules and self._modules.pop()[0] != id(module):
            pass

    def left(self, path: str, output: Any) -> None:
        """A layer handed this on."""
        tensors = [t for t in tensors_in(output) if t.dtype.is_floating_point]
        if tensors:
            values = tuple(self.value(t) for t in tensors)
            lines = next((v.maker.lines for v in values if v.maker is not None), ())
            self.trace.outputs.append(LayerOutput(path, tuple(t.dtype for t in tensors), values, lines))

    # --- one call, one operation -------------------------------------------------------------------

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of torch's is called."""
        if getattr(func, "__name__", "") in _QUIET or self.phase == "backward":
            return func(*args, **kwargs)
        outer = self._call
        enabled = torch.is_autocast_enabled(self._device_type)
        self._call = call = Call(
            name=op_name(func, args),
            lines=lines_running(),
            by_user=called_by_user(),
            autocast=torch.get_autocast_dtype(self._device_type) if enabled else None,
            shapes=tuple(tuple(t.shape) for t in tensors_in((args, tuple(kwargs.values())))),
        )
        self.trace.calls.append((call, self.module, self.phase))
        try:
            return func(*args, **kwargs)
        except Exception as e:
            tensors = tensors_in((args, tuple(kwargs.values())))
            self.failed(e, tuple(self.value(t).format for t in tensors))
            raise
        finally:
            self._call = outer

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation reached the dispatcher."""
        packet = func.overloadpacket.__name__
        if packet in _SKIPPED:
            results = func(*args, **kwargs)
            if packet in ("detach", "alias"):
                for t in tensors_in(results):
                    self._known[id(t)] = (self._reference(t), self.value(args[0]))
            return results
        arguments = tensors_in((args, tuple(kwargs.values())))
        operands = [self.value(t) for t in arguments]
        forward, number = None, torch._C._autograd._get_sequence_nr() - 1
        if self.phase == "backward":
            node = torch._C._current_autograd_node()
            forward = self._by_node.get(node._sequence_nr()) if node is not None else None
        results = func(*args, **kwargs)
        if self._keep and arguments and aten_name(func).rstrip("_") in GIVES_THE_FIRST:
            results = _as_first(results, arguments[0])
        made = tensors_in(results)
        op = Op(
            index=len(self.trace.ops),
            func=func,
            name=_name(func, args),
            phase=self.phase,
            module=forward.module if forward is not None else self.module,
            call=self._call,
            operands=operands,
            results=[],
            scalars=tuple(a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)),
            dtype_argument=kwargs.get("dtype"),
            forward=forward,
            in_place=func._schema.is_mutable,
            lines_=() if self._call is not None or self.phase == "backward" else lines_running(),
        )
        op.flops = self._count(func, args, kwargs, results, made)
        for t in made:
            op.results.append(self._remember(t, Value(t.dtype, tuple(t.shape), op)))
        for value in operands:
            value.consumers.append(op)
        if self.phase in ("forward", "loss"):
            self._by_node.setdefault(number, op)
        self.trace.ops.append(op)
        return results

    def _count(self, func: Any, args: Any, kwargs: Any, results: Any, made: list[Tensor]) -> int:
        formula = self._flops.get(func.overloadpacket)
        if formula is not None:
            with contextlib.suppress(TypeError, ValueError, IndexError, AttributeError):
                return int(formula(*args, **kwargs, out_val=results))
        if "rnn_layer" in func.overloadpacket.__name__:
            return _recurrent(func.overloadpacket.__name__, args)
        floats = [t for t in made if t.dtype.is_floating_point]
        if not floats or func.is_view or func.overloadpacket.__name__ in _FREE:
            return 0
        return max(t.numel() for t in (*floats, *(a for a in tensors_in(args) if a.dtype.is_floating_point)))

    def _remember(self, tensor: Tensor, value: Value) -> Value:
        if self._keep:
            value.kept = tensor
        self._known[id(tensor)] = (self._reference(tensor), value)
        self._stored[_storage(tensor)] = value
        return value

    @staticmethod
    def _reference(tensor: Tensor) -> Any:
        return weakref.ref(tensor)


_FREE = frozenset((
    "_to_copy", "clone", "copy_", "empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "full",
    "full_like", "arange", "cat", "stack", "embedding", "index_select", "index", "gather", "lift_fresh",
    "new_zeros", "new_empty", "new_full", "new_ones", "scalar_tensor", "fill_", "zero_", "native_dropout",
    "constant_pad_nd", "_unsafe_view", "rand", "randn", "bernoulli_", "split_with_sizes_copy",
    "empty_strided",
))  # fmt: skip
"""Operations that move numbers, or make them."""


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._recorder.call(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._recorder.operation(func, args, kwargs or {})


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in what an operation takes or gives."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [t for item in tree for t in tensors_in(item)]
    if isinstance(tree, Mapping):
        return [t for item in tree.values() for t in tensors_in(item)]
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        return [t for name in tree.__dataclass_fields__ for t in tensors_in(getattr(tree, name))]
    return []


def _name(func: Any, args: tuple[Any, ...]) -> str:
    name = aten_name(func)
    if name == "convolution" and len(args) > 6 and args[6]:
        return "conv_transpose"
    if name in ("index_put", "index_put_") and len(args) > 3 and args[3]:
        return name.replace("put", "put_accumulate")
    return name


def _as_first(results: Any, first: Tensor) -> Any:
    """What the real kernel gives, where a fake tensor says otherwise."""
    if isinstance(results, Tensor) and results.dtype is not first.dtype and first.dtype.is_floating_point:
        return results.to(first.dtype)
    return results


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)


def _formulas() -> Mapping[Any, Any]:
    from torch.utils.flop_counter import flop_registry

    registry: Mapping[Any, Any] = flop_registry
    return registry


def _recurrent(name: str, args: Any) -> int:
    """Multiplications and additions of a recurrent layer: 2 per weight, time step and row; twice that in
    backward."""
    tensors = tensors_in(args)
    x, w_in, w_state = tensors[0], tensors[1], tensors[2]
    steps = x.shape[0] * x.shape[1]
    return 2 * steps * (w_in.numel() + w_state.numel()) * (2 if "backward" in name else 1)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled functions run as they were written. torch's compiler is not imported where nobody has."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
