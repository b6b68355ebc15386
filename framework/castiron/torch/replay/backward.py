"""Backward as it runs: which node of autograd gave a bad gradient though it got good ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from castiron.torch.replay.events import backward_event
from castiron.torch.replay.names import node_name
from castiron.torch.replay.tracker import Call, Tracker
from castiron.torch.replay.values import is_finite, statistics, tensors_in
from castiron.training.incident import Event, TensorStatistics

_KEPT = 32

Node = Any
"""A node of autograd's graph."""
Edge = tuple[Node, int]
"""A node and which of its inputs."""


@dataclass(slots=True, eq=False)
class NodeEvidence:
    """What was kept of a node that gave bad gradients and got good ones."""

    event: Event
    operands: tuple[TensorStatistics, ...]
    results: tuple[TensorStatistics, ...]


@dataclass(slots=True, eq=False)
class NodeRun:
    """One node that ran."""

    node: Node
    order: int
    got_bad: bool
    gives_bad: list[Edge] = field(default_factory=list)
    evidence: NodeEvidence | None = None


class BackwardRecord:
    """What backward did to the gradients, node by node. Holds no gradient."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._owner: dict[Node, Call] = {}
        self.runs: dict[Node, NodeRun] = {}
        self._bad_edges: set[Edge] = set()
        self._given: dict[Edge, int] = {}
        self._hooks: list[Any] = []
        self._kept = 0

    # --- forward -------------------------------------------------------------------------------------

    def own(self, call: Call, made: Sequence[Tensor]) -> None:
        """A call of the forward pass made these tensors: the new nodes behind them are its own."""
        waiting: list[Node] = [t.grad_fn for t in made if t.requires_grad]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._owner or hasattr(node, "variable"):
                continue
            self._owner[node] = call
            waiting.extend(n for n, _ in node.next_functions)

    def owner(self, node: Node) -> Call | None:
        """The call of the forward pass whose backward a node is."""
        return self._owner.get(node)

    # --- backward ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """While backward runs from the tensors among these arguments."""
        roots: list[Node] = [t.grad_fn for t in tensors_in((args, dict(kwargs))) if t.requires_grad]
        self._given.clear()
        seen: set[Node] = set()
        waiting: list[Node] = [n for n in roots if n is not None]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            self._hooks.append(node.register_hook(_Hook(self, node)))
            waiting.extend(n for n, _ in node.next_functions if n is not None)
        try:
            yield
        finally:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    def close(self) -> None:
        """Let go of the graph's tensors; what is written down stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def ran(self, node: Node, outgoing: Sequence[Any], incoming: Sequence[Any]) -> None:
        """A node ran: it got `incoming` and gave `outgoing`."""
        with torch.no_grad():
            got_bad = any(self._came_bad((node, i), g) for i, g in enumerate(incoming) if _is_tensor(g))
            run = NodeRun(node, len(self.runs), got_bad)
            self.runs[node] = run
            if hasattr(node, "variable"):
                return
            for gradient, edge in zip(outgoing, node.next_functions, strict=False):
                if edge[0] is None or not _is_tensor(gradient):
                    continue
                self._given[edge] = self._given.get(edge, 0) + 1
                if not is_finite(gradient):
                    run.gives_bad.append(edge)
                    self._bad_edges.add(edge)
            if run.gives_bad and not got_bad and self._kept < _KEPT:
                self._kept += 1
                run.evidence = _evidence(node, incoming, outgoing)

    def _came_bad(self, edge: Edge, gradient: Tensor) -> bool:
        if edge in self._bad_edges:
            return True
        # one good gradient came along this edge, and it is this one; a sum of several may have overflowed
        return self._given.get(edge, 0) != 1 and not is_finite(gradient)

    # --- afterwards ----------------------------------------------------------------------------------

    def producer(self, of: set[int]) -> tuple[NodeRun, list[NodeRun]] | None:
        """The node where bad gradients of these parameters (by id) began, and the way from it to one.

        None where no node gave a bad gradient that reached them.
        """
        to: dict[Node, list[NodeRun]] = {}
        for run in self.runs.values():
            for node, _ in run.gives_bad:
                to.setdefault(node, []).append(run)
        ends = [
            run for run in self.runs.values() if id(getattr(run.node, "variable", None)) in of and run.got_bad
        ]
        next_of: dict[Node, NodeRun | None] = {run.node: None for run in ends}
        waiting, begun = list(ends), []
        while waiting:
            run = waiting.pop()
            if not run.got_bad:
                begun.append(run)
                continue
            givers = to.get(run.node, [])
            if not givers and not hasattr(run.node, "variable"):
                begun.append(run)  # what came overflowed when it was added up
            for giver in givers:
                if giver.node not in next_of:
                    next_of[giver.node] = run
                    waiting.append(giver)
        if not begun:
            return None
        first = min(begun, key=lambda r: r.order)
        way, at = [], next_of[first.node]
        while at is not None:
            way.append(at)
            at = next_of[at.node]
        return first, way


class _Hook:
    """A hook on a node. Keeps the record, not the gradients."""

    def __init__(self, record: BackwardRecord, node: Node) -> None:
        self.record, self.node = record, node

    def __call__(self, outgoing: Sequence[Any], incoming: Sequence[Any]) -> None:
        self.record.ran(self.node, outgoing, incoming)


def is_backward(func: Any) -> bool:
    """Whether a function runs backward."""
    return func in (Tensor.backward, torch.autograd.backward, torch.autograd.grad)


def saved_tensors(node: Node) -> dict[str, Tensor]:
    """Tensors that a node kept from forward, by name; before backward lets go of them."""
    found: dict[str, Tensor] = {}
    if isinstance(node, torch.autograd.function.BackwardCFunction):  # of a user's own function
        try:
            kept = node.saved_tensors
        except RuntimeError:
            return found
        return {f"saved {i}": t for i, t in enumerate(kept) if t is not None and t.is_floating_point()}
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                value = getattr(node, name)
            except RuntimeError:
                continue  # freed, or changed in place since
            if isinstance(value, Tensor):
                found[name.removeprefix("_saved_")] = value
    return found


def _evidence(node: Node, incoming: Sequence[Any], outgoing: Sequence[Any]) -> NodeEvidence:
    came = [g for g in incoming if _is_tensor(g)]
    went = [g for g in outgoing if _is_tensor(g)]
    saved = saved_tensors(node)
    return NodeEvidence(
        event=backward_event(node_name(node), came, went, saved),
        operands=(
            *(statistics("gradient", g) for g in came),
            *(statistics(name, t) for name, t in saved.items()),
        ),
        results=tuple(statistics("gradient", g) for g in went),
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
