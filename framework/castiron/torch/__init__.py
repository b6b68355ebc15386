"""The PyTorch wing: the plan applied, steps, scaling, optimizers. Plain torch; serves a bare loop.

with transaction(model, optimizer, policy) as step:
    for batch in batches:
        step(lambda batch: loss_function(model(batch["x"]), batch["y"]), batch)

Or its parts, by hand and without the guard:

plan, notes = resolve(policy, describe(model), device_capability())
precision, scaler = apply(model, plan), make_scaler(policy.scaling)
optimizer = AdamW(model.parameters(), fused=True)
guard_updates(optimizer, policy)
with matmul_switches(policy.matmul):
    for batch in batches:
        batch = cast_inputs(batch, policy)
        with precision.forward_context():
            loss = loss_function(*to_loss_dtype((model(batch["x"]), batch["y"]), torch.float32))
        optimizer.zero_grad()
        with precision.backward_context():
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_by_norm(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
"""

from castiron.torch.capability import device_capability
from castiron.torch.clipping import clip_by_norm
from castiron.torch.determinism import seed_everything, seeded
from castiron.torch.ema import WeightAverage
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.inputs import cast_inputs
from castiron.torch.loss import to_loss_dtype
from castiron.torch.modules import describe
from castiron.torch.optimizers import build_optimizer
from castiron.torch.precision import Precision, apply, departures
from castiron.torch.scaling import make_scaler
from castiron.torch.switches import matmul_switches
from castiron.torch.transaction import transaction
from castiron.torch.updates import guard_updates
from castiron.torch.weights import load_weights

__all__ = [
    "HealthMonitor",
    "Precision",
    "WeightAverage",
    "apply",
    "build_optimizer",
    "cast_inputs",
    "clip_by_norm",
    "departures",
    "describe",
    "device_capability",
    "guard_updates",
    "load_weights",
    "make_scaler",
    "matmul_switches",
    "seed_everything",
    "seeded",
    "to_loss_dtype",
    "transaction",
]
