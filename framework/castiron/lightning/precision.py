"""The precision policy as a Lightning plugin: for castiron's Trainer, and for a plain `lightning.Trainer`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from castiron.data import Schema
from castiron.diagnostics import ConfigError, Finding, Place, finding
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.capability import device_capability
from castiron.torch.clipping import clip_by_norm
from castiron.torch.dtypes import torch_dtype
from castiron.torch.inputs import InputCast
from castiron.torch.loss import check_loss
from castiron.torch.modules import describe
from castiron.torch.precision import Precision as AppliedPlan
from castiron.torch.precision import apply
from castiron.torch.reducing import reduce_in
from castiron.torch.scaling import Scaler, make_scaler
from castiron.torch.switches import matmul_switches
from castiron.torch.updates import guard_updates


class PrecisionPlugin(Precision):
    """Makes a policy true for any LightningModule.

    `lightning.Trainer(plugins=[PrecisionPlugin("bf16-mixed")])`: when training starts the policy is resolved
    against the module and the device, parameters and buffers are cast, the matrix-product switches are set
    (and put back at the end); each step's inputs are cast by role, its forward pass runs in the declared
    formats, the loss is scaled and its gradients unscaled before they are clipped.

    Args:
        policy: a policy, a preset's name, a short string, or a mapping.

    Raises:
        PlanError, HardwareError: when training starts; the policy does not fit the module, or the device.
        ConfigError: likewise; the module is shared among processes already (X815).
    """

    precision: Literal["32-true"] = "32-true"  # what Lightning itself is to assume: nothing

    def __init__(self, policy: PrecisionPolicy | str | Mapping[str, Any]) -> None:
        Precision.__init__(self)  # not a sibling's: FSDPPrecisionPlugin has two parents
        self.policy = PrecisionPolicy.model_validate(policy)
        self.declared = self.policy
        """The policy as it was given; the one in force may differ once a layer was widened as a response."""
        self.plan: Plan | None = None
        """The plan, once training has started."""
        self.findings: list[Finding] = []
        """What resolving and applying the plan had to say that did not stop it."""
        self._applied: AppliedPlan | None = None
        self._cast = InputCast(self.policy)
        self._scaler = make_scaler(self.policy.scaling)
        self._stepped: set[Optimizer] = set()
        self._checked_loss = False
        self._closing = contextlib.ExitStack()
        self.before_step: Callable[[Optimizer], None] | None = None
        """In place of what Lightning does between backward and the optimizer's step: hooks and clipping."""

    # --- set-up ------------------------------------------------------------------------------------

    def convert_module(self, module: nn.Module) -> nn.Module:
        root = getattr(module, "precision_root", module)
        if any(hasattr(p, "to_local") for p in root.parameters()):
            raise _shared_already()
        schema: Schema | None = getattr(module, "schema", None)
        self._cast = InputCast(self.policy, schema)
        device = _device_of(module)
        self.teardown()
        self.plan, notes = resolve(self.policy, describe(root), device_capability(str(device)))
        self._applied = apply(root, self.plan)
        self.findings = [*notes, *self._applied.findings]
        self._closing.enter_context(matmul_switches(self.policy.matmul))
        return module

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        for optimizer in optimizers:
            guard_updates(optimizer, self.policy)
        if isinstance(model, DistributedDataParallel):
            reduce_in(model, torch_dtype(self.policy.accumulate))
        return model, optimizers, lr_schedulers

    def teardown(self) -> None:
        """Put the process-wide switches back. The module keeps its formats."""
        self._closing.close()
        self._checked_loss = False

    # --- a step ------------------------------------------------------------------------------------

    def convert_input(self, data: Any) -> Any:
        return self._cast(data)

    @contextlib.contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        if self._applied is None:
            yield
        else:
            with self._applied.forward_context():
                yield

    def backward_context(self) -> contextlib.AbstractContextManager[None]:
        """For `loss.backward()`."""
        return self._applied.backward_context() if self._applied else contextlib.nullcontext()

    @contextlib.contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        self._update_scale()  # of the step before: one update, however many optimizers it had
        with self.forward_context():
            yield

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, times the scale."""
        if not self._checked_loss:  # once
            self._checked_loss = True
            if found := check_loss(loss, self.policy):
                self.findings.append(found)
        return self._scaler.scale(loss)

    def pre_backward(self, tensor: Tensor, module: pl.LightningModule) -> Tensor:  # type: ignore[override]
        return super().pre_backward(self.scaled(tensor), module)

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: pl.LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        with self.backward_context():
            super().backward(tensor, model, optimizer, *args, **kwargs)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: pl.LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        if not self._scaler.active:
            return optimizer.step(closure=partial(self._wrap_closure, model, optimizer, closure), **kwargs)
        result = closure()
        if result is None and model.automatic_optimization:
            return result  # the user's training_step returned None: there are no gradients
        if optimizer in self._stepped:
            self._update_scale()  # manual optimization that steps the same optimizer again
        self._scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        self._stepped.add(optimizer)
        return self._scaler.step(optimizer, **kwargs)

    def _after_closure(self, model: pl.LightningModule, optimizer: Any) -> None:
        if self.before_step is None:
            super()._after_closure(model, optimizer)
        else:
            self.before_step(optimizer)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        clip_by_norm(self.main_params(optimizer), float(clip_val), torch_dtype(self.policy.accumulate))

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        super().clip_gradients(optimizer, clip_val, gradient_clip_algorithm)

    @property
    def loss_scaler(self) -> Scaler:
        """What scales the loss."""
        return self._scaler

    def loss_scale(self) -> float | None:
        """The scale of the loss; None where it is not scaled. Waits for the device."""
        return self._scaler.get_scale() if self._scaler.active else None

    def check_scale(self) -> Finding | None:
        """What there is to say of the loss scale (S4xx), once per condition. Waits for the device."""
        return self._scaler.check()

    def forget_step(self) -> None:
        """The step that was begun is held for another reason than its gradients: no scale follows from it."""
        self._scaler.discard()
        self._stepped.clear()

    def change_policy(self, module: pl.LightningModule, policy: PrecisionPolicy) -> None:
        """Go on under another policy, resolved and applied anew; scale and optimizers stay.

        Raises:
            PlanError: it does not fit the module.
        """
        self.policy = policy
        self.convert_module(module)

    def _update_scale(self) -> None:
        if self._stepped:
            self._scaler.update()
            self._stepped.clear()

    # --- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        self._update_scale()
        return {"policy": str(self.policy), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state_dict["scaler"])


def _shared_already() -> ConfigError:
    return ConfigError(
        finding(
            "X815",
            "The module is shared among processes (DTensor) before the plan is applied to it.",
            place=Place(key="strategy"),
            expected="DDP, FSDPStrategy, or a recipe with trainer.strategy=fsdp",
            received="parameters taken apart by fully_shard or a parallel plan (as ModelParallelStrategy "
            "asks for in configure_model)",
            remedy="Use one of those.",
        )
    )


def _device_of(module: nn.Module) -> torch.device:
    """Where the module is going to be, which is not where it is when Lightning converts it."""
    if isinstance(module, pl.LightningModule) and module._trainer is not None:
        return module.trainer.strategy.root_device
    parameter = next(module.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")
