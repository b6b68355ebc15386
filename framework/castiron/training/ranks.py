"""Several processes that train together: which of them this is, and how they agree before they begin.

Nothing here knows how they talk: a wing gives `Peers`, by way of its own framework.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
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
    """Who started them: castiron, torchrun or srun."""


def rank_here(environment: Mapping[str, str] | None = None) -> Rank | None:
    """What `torchrun`, `srun` or castiron itself said of this process; None where it is alone.

    A batch script's own shell is alone, also where Slurm has given it several tasks: only `srun` starts them.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and env.get("RANK", "").isdecimal():
        by, names = "castiron" if STORE in env else "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif env.get("SLURM_STEP_NUM_TASKS", "").isdecimal() and env.get("SLURM_PROCID", "").isdecimal():
        by, names = "srun", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return None
    rank, world, local = (int(env.get(name, "0")) for name in names)
    return Rank(rank, world, local, by) if world > 1 else None


def world_of(config: RunConfig) -> int:
    """Processes that a config asks for."""
    return config.trainer.devices * config.trainer.nodes


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


@contextmanager
def alone() -> Iterator[Peers]:
    """`Alone`, where peers are entered."""
    yield Alone()
