"""The PyTorch wing's front door for recipes. To ask what a device can run loads torch, and not Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from castiron.policy import DeviceCapability, PrecisionPolicy
from castiron.torch.capability import device_capability
from castiron.training.audit import AuditReport
from castiron.training.backend import BackendName, Job, Outcome, Preview, Remedies, Replayed, Split
from castiron.training.calibration import Measured, Trial
from castiron.training.config import RunConfig
from castiron.training.incident_folder import IncidentFolder
from castiron.training.ranks import Peers, Rank
from castiron.training.recipe import Recipe
from castiron.training.side import Trained


class LightningBackend:
    """Trains recipes with Lightning."""

    name: BackendName = "torch"

    def capability(self, device: str = "auto") -> DeviceCapability:
        return device_capability(device)

    def preview(self, job: Job) -> Preview:
        from castiron.lightning import session

        return session.preview(job)

    def fit(self, job: Job) -> Outcome:
        from castiron.lightning import session

        return session.fit(job)

    def peers(self, here: Rank, config: RunConfig) -> AbstractContextManager[Peers]:
        from castiron.lightning.peers import connected

        return connected(here, config)

    def evaluate(self, job: Job, splits: Sequence[Split] = ("test",)) -> dict[str, dict[str, float]]:
        from castiron.lightning import session

        return session.evaluate(job, splits)

    def audit(self, job: Job) -> AuditReport:
        from castiron.lightning import session

        return session.audit(job)

    def audit_model(self, model: Any, inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
        from castiron.torch.audit import audit
        from castiron.torch.audit.spec import example

        return audit(model, example(inputs), policy)

    def predict(self, job: Job, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        from castiron.lightning import session

        return session.predict(job, inputs)

    def weights(self, job: Job) -> dict[str, np.ndarray]:
        """What the model of `job.checkpoint` stores, by name (`castiron convert`)."""
        from castiron.lightning import carrying

        return carrying.weights(job)

    def adopt(self, job: Job, weights: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint of these weights, in the formats of the plan, as the run's best."""
        from castiron.lightning import carrying

        carrying.adopt(job, weights)

    def export(self, job: Job, path: Path) -> None:
        """Write the weights of `job.checkpoint` as safetensors, the manifest in the header."""
        from castiron.lightning.checkpoints import export

        assert job.checkpoint is not None
        export(job.checkpoint, path)

    def measure(self, job: Job, batches: int) -> Measured:
        """Ranges of a recipe's model on training batches; trains nothing (`castiron health`)."""
        from castiron.lightning import calibrating

        return calibrating.measure(job, batches)

    def trial(self, job: Job) -> Trial:
        """A short training that keeps nothing (`castiron suggest`)."""
        from castiron.lightning import calibrating

        return calibrating.trial(job)

    def side(self, job: Job, at: Sequence[int]) -> Trained:
        """A short training that keeps nothing, looked at after these steps (`castiron compare`)."""
        from castiron.lightning import comparing

        return comparing.side(job, at)

    def replay(
        self, folder: IncidentFolder, config: RunConfig, recipe: type[Recipe], remedies: Remedies
    ) -> Replayed:
        from castiron.lightning.replaying import replay_recipe

        return replay_recipe(folder, config, recipe, remedies)
