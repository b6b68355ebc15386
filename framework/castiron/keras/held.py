"""The held steps of one loop: replayed, recorded, and responded to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castiron.diagnostics import Finding, NumericIncident
from castiron.keras.replay import ReplayStep, attribute
from castiron.keras.replay.pipeline import blame_pipeline
from castiron.keras.replay.step import OwnStep
from castiron.keras.responding import Actions, carry_out, check_response
from castiron.keras.step import Forward, StepCore
from castiron.policy import Plan
from castiron.training.held import (
    Origin,
    Verdict,
    describe_held,
    incident_of,
    stored,
    suspicion,
    told_unstored,
)
from castiron.training.incident import Attribution, Incident
from castiron.training.ranks import Alone, Peers, speaker
from castiron.training.responses import Responses


class HeldSteps:
    """What follows a held step.

    Args:
        plan: the plan in force; its policy's `guard` section counts.
        origin: row number to a place in a file.
        folder: where incidents are kept; None: nowhere.
        actions: what can be done to the training beside going on; None: nothing.
        peers: the processes that train together; all hold a step, and come here, at once.

    Raises:
        ConfigError: the response needs more than this wing has (X815).
    """

    def __init__(
        self,
        core: StepCore,
        plan: Plan,
        origin: Origin | None = None,
        folder: str | Path | None = None,
        actions: Actions | None = None,
        peers: Peers | None = None,
    ) -> None:
        check_response(plan.policy.guard, actions)
        self.core, self.plan = core, plan
        """What is in force now; whoever changes it says so here."""
        self._origin, self._actions = origin, actions
        self._peers = peers or Alone()
        self._folder = None if folder is None else Path(folder)
        self.responses = Responses(plan.policy.guard)
        self.incidents: list[Incident] = []
        """One for each held step."""
        self.assets: Path | None = None
        """A folder with what a recipe learned from its data."""
        self.config: str | None = None
        """The run's resolved config, as YAML."""
        self.pipeline: Any = None
        """The `tf.data.Dataset` that batches come from: where data are to blame, it is looked into."""
        self.facts: dict[str, Any] = {}
        """What running a step again needs to know beside its tensors; `kind` says what it is of."""

    def respond(
        self,
        forward: Forward,
        batches: Sequence[Any],
        verdict: Verdict | Sequence[Verdict],
        committed: int,
        scale: Finding | None = None,
        *,
        epoch: int = 0,
        replicas: bool = False,
        own: OwnStep | None = None,
    ) -> Finding:
        """Replay a held step, record what is to blame, and do what the policy says.

        Args:
            verdict: what the guard saw; of several processes, what each saw, by rank.
            committed: optimizer steps applied before it.
            scale: what the loss scaler has to say; S401 ends training whatever the response.
            replicas: the batches are those of replicas, and not one replica's micro-batches.
            own: the model's own `train_step`, where it has one.

        Returns:
            What is to blame, where training goes on.

        Raises:
            NumericIncident: the response is to raise, the budget is spent (N510), or the loss scale stands at
                its floor (S401).
        """
        verdicts = [verdict] if isinstance(verdict, Verdict) else verdict
        mine = verdicts[self._peers.rank]
        step = ReplayStep(self.core, forward, batches, mine, self.core.scaler.get_scale(), own)
        attribution, rank = self._attribute(step, verdicts)
        verdict = verdicts[rank]
        compute = {row.path: row.compute for row in self.plan.rows if row.path}
        decision = self.responses.decide(committed, attribution, compute=compute)
        before = [*([scale] if scale is not None and scale.severity == "error" else []), *decision.findings]
        response = "raise" if before else decision.response
        incident = incident_of(
            attribution,
            step=committed,
            epoch=epoch,
            policy=str(self.plan.policy),
            verdict=verdict,
            response=response,
            rank=rank,
            origin=self._origin,
        )
        if replicas:
            incident = incident.model_copy(update={"rank": incident.micro_batch or 0, "micro_batch": None})
        self.incidents.append(incident)
        kept = self._store(incident, step) if self._peers.rank == rank else None
        path, problems = self._peers.gather(kept)[rank]
        found = describe_held(verdict, committed, self.plan.policy.guard.watch, incident=incident)
        found = told_unstored(found, problems)
        if response == "raise":
            raise NumericIncident([*before, found], incident=incident, path=path)
        if self._actions is not None:
            back, plan = carry_out(self._actions, decision)
            self.responses.went_back(back)
            self.plan = plan or self.plan
        return found

    def _attribute(self, step: ReplayStep, verdicts: Sequence[Verdict]) -> tuple[Attribution, int]:
        """What is to blame, and the rank whose step it was: the processes that look bad replay theirs."""
        doubts = [suspicion(verdict) for verdict in verdicts]
        own: Attribution | None = None
        if doubts[self._peers.rank] == max(doubts):
            own = attribute(step)
            if own.event == "data" and self.pipeline is not None:
                own = blame_pipeline(own, self.pipeline)
        found = self._peers.gather(own)
        rank = speaker([None if one is None else one.reproduced for one in found])
        return found[rank], rank

    def _store(self, incident: Incident, step: ReplayStep) -> tuple[Path | None, tuple[Finding, ...]]:
        """→ the incident's folder, and what there is to say where it could not be written."""
        folder = self._folder
        if folder is None:
            return None, ()
        from castiron.keras.incidents import store

        return stored(
            lambda: store(
                incident,
                step,
                folder,
                plan=self.plan,
                config=self.config,
                assets=self.assets,
                facts=self.facts,
                origin=self._origin,
            )
        )
