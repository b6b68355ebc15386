"""Boundaries of layers: what goes in and comes out has the formats of the plan, on every device.

autocast decides operation by operation, and differently on each device: on a CPU an LSTM hands on 16 bits, a
GRU or an LSTM on packed sequences float32, LayerNorm 16 bits, on CUDA float32. A layer gets a hook only where
what autocast does can differ from its row of the plan. A layer that computes in another format than the
model around it runs its forward under autocast of its own.

Everything put on a module here is an object of this file: it survives `copy.deepcopy` and pickling, is traced
by torch.compile (when put there before the first compiled call: later hooks are never seen), and is found
again by `remove`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from castiron.policy import Plan, PlanRow
from castiron.torch.dtypes import NARROW, torch_dtype
from castiron.torch.modules import RECURRENT, walk
from castiron.torch.trees import cast_floats, map_tensors

_ISLANDS = ("softmax", "normalization")


class CastInputs:
    """A forward pre-hook: floating-point arguments in the layer's compute format.

    With `ambient`, only under autocast: what castiron does to a layer that has no rule of its own ends
    with castiron's context.
    """

    def __init__(self, dtype: torch.dtype, *, ambient: bool) -> None:
        self.dtype = dtype
        self.ambient = ambient

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _cast(args, self.dtype, self.ambient), _cast(kwargs, self.dtype, self.ambient)


class CastOutput:
    """A forward hook: floating-point results in the layer's output format."""

    def __init__(self, dtype: torch.dtype, *, ambient: bool) -> None:
        self.dtype = dtype
        self.ambient = ambient

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _cast(output, self.dtype, self.ambient)


class FreshWeights:
    """A forward pre-hook: no weight that was cast without gradients is used with them.

    autocast keeps the casts of weights until its outermost context ends. A forward pass under `no_grad`
    inside a context leaves casts that have no gradient, and the next pass with gradients would use them:
    the weights would get none, in silence. All hooks of a model share one `GradMode`.
    """

    def __init__(self, seen: GradMode) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return  # a compiled graph casts for itself
        enabled = torch.is_grad_enabled()
        if enabled is not self.seen.enabled:
            self.seen.enabled = enabled
            if enabled:
                torch.clear_autocast_cache()


class GradMode:
    """Whether the last layer that was called recorded gradients."""

    enabled: bool = True


class LayerForward:
    """The forward of a layer that computes in another format than the model around it.

    A layer wider than the model, or one whose parameters have its compute format, runs without autocast on
    inputs in that format; one that is to compute narrower than it stores runs under autocast of its own.
    Takes the place of `forward` on the instance, so that leaving it restores everything also after an error.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, *, autocast: bool) -> None:
        self.module = module
        self.dtype = dtype
        self.autocast = autocast
        self.before = module.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.before or functools.partial(type(self.module).forward, self.module)
        device_type = _device_type(self.module, args, kwargs)
        if self.autocast:
            with torch.autocast(device_type, dtype=self.dtype):
                return forward(*args, **kwargs)
        args, kwargs = cast_floats(args, self.dtype), cast_floats(kwargs, self.dtype)
        with torch.autocast(device_type, enabled=False):
            return forward(*args, **kwargs)


def add(model: nn.Module, plan: Plan) -> int:
    """Put on each layer what its row needs; how many layers got something."""
    ambient = ambient_dtype(plan)
    mixed_layers = ambient is None and any(row.ruled for row in plan.rows)
    rows = {row.path: row for row in plan.rows}
    seen, done, touched = GradMode(), set(), 0
    for path, module in walk(model):
        row = rows[path]
        if id(module) in done:
            continue
        done.add(id(module))
        hooks = _needs(row, module, plan, ambient, mixed_layers)
        if ambient is not None and _casts_weights(row, ambient):
            hooks.insert(0, FreshWeights(seen))
        for hook in hooks:
            if isinstance(hook, LayerForward):
                module.forward = hook
            elif isinstance(hook, CastInputs):
                module.register_forward_pre_hook(hook, with_kwargs=True)
            elif isinstance(hook, FreshWeights):
                module.register_forward_pre_hook(hook)
            else:
                module.register_forward_hook(hook)
        touched += bool(hooks)
    return touched


def remove(model: nn.Module) -> None:
    """Take off everything that `add` put on, also from a copy of the model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, h in hooks.items() if isinstance(h, (CastInputs, CastOutput, FreshWeights))]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        own = module.__dict__.get("forward")
        if isinstance(own, LayerForward):
            if own.before is None:
                del module.__dict__["forward"]
            else:
                module.forward = own.before


_GATHERED = ("matmul", "conv", "lstm", "gru", "rnn", "attention")


def ambient_dtype(plan: Plan) -> torch.dtype | None:
    """What autocast around the whole forward computes in; None where there is none.

    Where parameters have 16 bits themselves, autocast is there for the islands alone.
    """
    compute = torch_dtype(plan.policy.compute)
    islands = plan.policy.islands
    if compute not in NARROW:
        return None
    kept_wide = islands.softmax or islands.normalization or islands.reductions or islands.exponentials
    return compute if plan.policy.is_mixed or kept_wide else None


def gathered_dtypes(model: nn.Module, plan: Plan) -> list[tuple[nn.Module, torch.dtype]]:
    """Layers that cast all their weights to a narrower format than they store, with that format; innermost
    first. A model that is shared among processes is gathered so, and nothing else of it changes."""
    ambient = ambient_dtype(plan)
    rows = {row.path: row for row in plan.rows}
    found: dict[nn.Module, torch.dtype] = {}
    if ambient is not None:
        for path, module in reversed(list(walk(model))):
            row = rows[path]
            if not row.ruled and row.family in _GATHERED and _casts_weights(row, ambient):
                found[module] = ambient
    return list(found.items())


def _needs(
    row: PlanRow, module: nn.Module, plan: Plan, ambient: torch.dtype | None, mixed_layers: bool
) -> list[Any]:
    compute, output = torch_dtype(row.compute), torch_dtype(row.output)
    if row.ruled:
        hooks: list[Any] = []
        if row.family != "embedding" and compute is not _native(row, plan, ambient):
            narrower = compute in NARROW and torch_dtype(row.param) is not compute
            hooks.append(LayerForward(module, compute, autocast=narrower and row.family not in _ISLANDS))
        elif isinstance(module, RECURRENT) and ambient is not None:
            hooks.append(CastInputs(compute, ambient=True))
        return [*hooks, CastOutput(output, ambient=False)]
    if row.family is None:
        return []
    if ambient is None:
        if mixed_layers and row.family != "embedding":
            return [CastInputs(compute, ambient=False)]
        return []
    hooks = []
    if isinstance(module, RECURRENT):
        hooks.append(CastInputs(compute, ambient=True))
    elif row.family in _ISLANDS and compute is not _native(row, plan, ambient):
        hooks.append(LayerForward(module, compute, autocast=False))
    certain = row.family in ("matmul", "conv") and not isinstance(module, nn.Bilinear)
    if not certain or output is not ambient:
        hooks.append(CastOutput(output, ambient=True))
    return hooks


def _native(row: PlanRow, plan: Plan, ambient: torch.dtype | None) -> torch.dtype | None:
    """What a layer of this kind computes in when it is left alone; None: it depends."""
    if row.family in _ISLANDS and ambient is not None:
        wide = plan.policy.islands.softmax if row.family == "softmax" else plan.policy.islands.normalization
        if wide is not None:
            return torch.float32
        # torch's own list for CUDA widens these whatever the policy says; on a CPU they follow their input
        return None
    if ambient is not None:
        return ambient
    return None if row.ruled else torch_dtype(row.param)


def _casts_weights(row: PlanRow, ambient: torch.dtype) -> bool:
    return (
        bool(row.parameters)
        and torch_dtype(row.param) is not ambient
        and row.family not in ("embedding", "normalization")
    )


def _cast(tree: Any, dtype: torch.dtype, ambient: bool) -> Any:
    if not ambient:
        return cast_floats(tree, dtype)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is dtype or not tensor.dtype.is_floating_point or tensor.dtype is torch.float64:
            return tensor
        return tensor.to(dtype) if torch.is_autocast_enabled(tensor.device.type) else tensor

    return map_tensors(change, tree)


def _device_type(module: nn.Module, args: Any, kwargs: Any) -> str:
    found: list[str] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.device.type)
        return tensor

    map_tensors(look, (args, kwargs))
    if not found:
        found = [t.device.type for t in module.parameters()]
    return found[0] if found else "cpu"
