"""Several processes that train together: which of them this is, and how they agree before they begin.

Nothing here knows how they talk: a wing gives `Peers`, by way of its own framework.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from castiron.diagnostics import CastironError, ConfigError, Place, RunError, finding

if TYPE_CHECKING:
    from castiron.training.config import RunConfig

T = TypeVar("T")

STORE = "CASTIRON_STORE"
"""Environment variable: the file by which processes that castiron started find each other."""

_SHOWN = 12
"""Differences between ranks that are listed one by one."""


class PeerLost(RunError):
    """Another process of this training ended, or answers no more. The run can be resumed."""

    exit_code = 75


@dataclass(frozen=True, slots=True)
class Rank:
    """A process's place among those that train together."""

    rank: int
    """From 0, over all machines."""
    world: int
    """How many there are."""
    local: int
    """From 0, on this machine."""
    by: str
    """Who started them: castiron, torchrun, srun; or TF_CONFIG, which says it to TensorFlow."""


def rank_here(environment: Mapping[str, str] | None = None, *, backend: str = "torch") -> Rank | None:
    """What `torchrun`, `srun` or castiron itself said of this process; None where it is alone.

    A batch script's own shell is alone, also where Slurm has given it several tasks: only `srun` starts them.

    Args:
        backend: who trains; `TF_CONFIG` is for tensorflow alone.

    Raises:
        ConfigError: `TF_CONFIG` says nothing of this process that can be used (X815).
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and env.get("RANK", "").isdecimal():
        by, names = "castiron" if STORE in env else "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif env.get("SLURM_STEP_NUM_TASKS", "").isdecimal() and env.get("SLURM_PROCID", "").isdecimal():
        by, names = "srun", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    elif backend == "tensorflow" and env.get("TF_CONFIG"):
        return _rank_in(env["TF_CONFIG"])
    else:
        return None
    rank, world, local = (int(env.get(name, "0")) for name in names)
    return Rank(rank, world, local, by) if world > 1 else None


def _rank_in(text: str) -> Rank | None:
    """A process's place as `TF_CONFIG` tells it; None where it is alone."""
    try:
        told = json.loads(text)
        cluster, task = told.get("cluster", {}), told.get("task", {})
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        workers = addresses(told)
        own = [str(address) for address in cluster.get(kind, ())]
        known = not workers or (kind in ("chief", "worker") and 0 <= index < len(own))
        if not known or set(cluster) - {"chief", "worker"}:
            raise ValueError(f"task {kind} {index} of {', '.join(cluster) or 'no cluster'}")
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise ConfigError(
            finding(
                "X815",
                "TF_CONFIG does not say which worker this process is.",
                expected='{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}',
                received=str(e)[:200] or type(e).__name__,
                remedy="Set it for each process, with an index of its own; or unset it.",
            )
        ) from None
    if len(workers) < 2:
        return None
    rank = index + (len(workers) - len(own) if kind == "worker" else 0)
    host = workers[rank].rpartition(":")[0]
    local = sum(other.rpartition(":")[0] == host for other in workers[:rank])
    return Rank(rank, len(workers), local, "TF_CONFIG")


def addresses(tf_config: Mapping[str, Any]) -> list[str]:
    """Where the processes are that train together, by rank, as `TF_CONFIG` has it: the chief is the first."""
    cluster = tf_config.get("cluster", {})
    return [str(address) for kind in ("chief", "worker") for address in cluster.get(kind, ())]


def world_of(config: RunConfig) -> int:
    """Processes that a config asks for."""
    return config.trainer.devices * config.trainer.nodes


_LOSS = (
    "closed by peer",
    "reset by peer",
    "timed out",
    "timeout",
    "connection refused",
    "connection was likely closed",
    "socket",
    "broken pipe",
)
"""What messages of a lost connection have in common (gloo raises a plain RuntimeError)."""


def is_loss(message: str) -> bool:
    """Whether the message of a failed exchange speaks of a lost connection."""
    return any(words in message.lower() for words in _LOSS)


def peer_lost(rank: int, received: str, *, slow: bool) -> PeerLost:
    """The error of a failed exchange (X831).

    Args:
        received: what was said of it.
        slow: the other gave no answer in time; else it is gone.
    """
    return PeerLost(
        finding(
            "X831",
            f"Rank {rank} "
            + ("got no answer from another process in time." if slow else "lost another process."),
            received=received,
            remedy="Look at what ended it, or raise trainer.timeout; then go on with castiron train "
            "--resume RUN.",
            rank=rank,
        )
    )


def check_world(config: RunConfig, here: Rank | None) -> None:
    """Refuse a config that asks for another number of processes than were started (X815)."""
    world = world_of(config)
    if here is None and config.trainer.nodes > 1:
        raise ConfigError(
            finding(
                "X815",
                "castiron starts the processes of one machine only.",
                place=Place(key="trainer.nodes"),
                expected=f"torchrun or srun, which start all {world}",
                received=f"{config.trainer.nodes} machines, and nobody who started them",
                remedy="torchrun --nnodes … --nproc_per_node … -m castiron train …, once on each machine.",
            )
        )
    if here is not None and here.world != world:
        raise ConfigError(
            finding(
                "X815",
                f"The config asks for another number of processes than {here.by} started.",
                place=Place(key="trainer.devices"),
                expected=f"{here.world}: trainer.devices for each machine times trainer.nodes",
                received=f"{config.trainer.devices} times {config.trainer.nodes}",
                remedy="Say trainer.devices=… (and trainer.nodes=…) as the processes are started.",
            )
        )


class Peers(Protocol):
    """The processes of a training, seen from one of them. Every method is called by all of them."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """What each gave, by rank, on all of them. Values are pickled.

        Raises:
            PeerLost: one has ended, or gives no answer.
        """


class Alone:
    """A process that trains by itself."""

    rank = 0
    world = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


def together(peers: Peers, action: Callable[[], T]) -> T:
    """Do something on all ranks; where it fails on one, it fails on all, with the error of the lowest.

    Raises:
        CastironError: on all ranks; what rank 0 has to say is told by rank 0 alone (`is_told`).
    """
    result: T | None = None
    error: CastironError | None = None
    try:
        result = action()
    except CastironError as e:
        error = e
    if peers.world == 1:
        if error is not None:
            raise error
        return result  # type: ignore[return-value]
    _raise_first(peers.gather(error), peers.rank)
    return result  # type: ignore[return-value]


def first_then_others(peers: Peers, action: Callable[[], T]) -> T:
    """Do something on rank 0, and when that is done on the others, which may read what it has written."""
    if peers.world == 1:
        return action()
    result: list[T] = []
    together(peers, lambda: result.append(action()) if peers.rank == 0 else None)
    together(peers, lambda: result.append(action()) if peers.rank != 0 else None)
    return result[0]


def _raise_first(errors: list[CastironError | None], rank: int) -> None:
    number = next((n for n, e in enumerate(errors) if e is not None), None)
    if number is None:
        return
    error = errors[number]
    assert error is not None
    if number > 0:  # rank 0 tells what is somebody else's
        found = [replace(f, message=f"On rank {number}: {f.message}") for f in error.findings]
        error = type(error)(found)
    if rank > 0:
        error.told = True  # type: ignore[attr-defined]
    raise error


def is_told(error: CastironError) -> bool:
    """Whether another rank tells this error to the user."""
    return bool(getattr(error, "told", False))


def check_alike(peers: Peers, what: str, facts: Mapping[str, Any]) -> None:
    """Refuse to go on where ranks differ.

    Args:
        what: what the facts are about, in a word or two: "config", "versions".
        facts: name → value; each rank's own.

    Raises:
        ConfigError: on all ranks; X830 for each fact and rank that differs from rank 0.
    """
    if peers.world == 1:
        return
    own = {name: str(value) for name, value in facts.items()}
    first, *others = peers.gather(own)
    differing = [
        (rank, name, first.get(name, "nothing"), given.get(name, "nothing"))
        for rank, given in enumerate(others, 1)
        for name in dict.fromkeys([*first, *given])
        if first.get(name) != given.get(name)
    ]
    if not differing:
        return
    found = [
        finding(
            "X830",
            f"Rank {rank} has another '{name}' than rank 0 ({what}).",
            place=Place(key=name if what == "config" else None),
            expected=f"{expected} (rank 0)",
            received=f"{received} (rank {rank})",
            rank=rank,
        )
        for rank, name, expected, received in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        found[-1] = replace(found[-1], count=len(differing) - _SHOWN + 1)
    error = ConfigError(found)
    if peers.rank > 0:
        error.told = True  # type: ignore[attr-defined]
    raise error


def speaker(reproduced: Sequence[bool | None]) -> int:
    """The rank that speaks for all of a held step: the lowest where replay met the fault again, else the
    lowest that was replayed at all.

    Args:
        reproduced: of each rank whether its replay met the fault; None where it was not replayed.
    """
    marks = [-1 if met is None else int(met) for met in reproduced]
    return marks.index(max(marks))


@contextmanager
def alone() -> Iterator[Peers]:
    """`Alone`, where peers are entered."""
    yield Alone()
