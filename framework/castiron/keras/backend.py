"""The TensorFlow wing's front door for recipes. To ask what a device can run builds no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from castiron.keras.capability import device_capability
from castiron.policy import DeviceCapability, PrecisionPolicy
from castiron.training.backend import BackendName, Job, Outcome, Preview, Remedies, Replayed, Split
from castiron.training.config import RunConfig
from castiron.training.incident_folder import IncidentFolder
from castiron.training.ranks import Peers, Rank
from castiron.training.recipe import Recipe

if TYPE_CHECKING:
    from castiron.training.audit import AuditReport
    from castiron.training.calibration import Measured, Trial


class KerasBackend:
    """Trains recipes with Keras on TensorFlow."""

    name: BackendName = "tensorflow"

    def capability(self, device: str = "auto") -> DeviceCapability:
        return device_capability(device)

    def preview(self, job: Job) -> Preview:
        from castiron.keras import session

        return session.preview(job)

    def fit(self, job: Job) -> Outcome:
        from castiron.keras import session

        return session.fit(job)

    def peers(self, here: Rank, config: RunConfig) -> AbstractContextManager[Peers]:
        from castiron.keras.peers import connected

        return connected(here, config)

    def evaluate(self, job: Job, splits: Sequence[Split] = ("test",)) -> dict[str, dict[str, float]]:
        from castiron.keras import session

        return session.evaluate(job, splits)

    def predict(self, job: Job, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        from castiron.keras import session

        return session.predict(job, inputs)

    def audit(self, job: Job) -> AuditReport:
        from castiron.keras import session

        return session.audit(job)

    def audit_model(self, model: Any, inputs: Sequence[str], policy: PrecisionPolicy) -> AuditReport:
        from castiron.keras.auditing import audit_model

        return audit_model(model, inputs, policy)

    def measure(self, job: Job, batches: int) -> Measured:
        from castiron.keras import calibrating

        return calibrating.measure(job, batches)

    def trial(self, job: Job) -> Trial:
        from castiron.keras import calibrating

        return calibrating.trial(job)

    def weights(self, job: Job) -> dict[str, np.ndarray]:
        """What the model of `job.checkpoint` stores, by name, in its own formats."""
        from castiron.keras import session

        return session.weights(job)

    def adopt(self, job: Job, weights: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint of these weights, in the formats of the plan, as the run's best."""
        from castiron.keras import session

        session.adopt(job, weights)

    def replay(
        self, folder: IncidentFolder, config: RunConfig, recipe: type[Recipe], remedies: Remedies
    ) -> Replayed:
        from castiron.keras import replaying

        return replaying.replay_recipe(folder, config, recipe, remedies)
