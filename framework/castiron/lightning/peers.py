"""The processes of a training, connected by torch's own process group."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import distributed

from castiron.training.config import RunConfig
from castiron.training.ranks import STORE, Peers, Rank, is_loss, peer_lost


class GroupPeers:
    """Peers by way of the default process group."""

    def __init__(self, here: Rank) -> None:
        self.rank, self.world = here.rank, here.world

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        with told_as_lost(self.rank):
            distributed.all_gather_object(found, value)
        return found


@contextlib.contextmanager
def connected(here: Rank, config: RunConfig) -> Iterator[Peers]:
    """Connect with the others; wait for them at most `trainer.timeout` seconds, now and at each exchange.

    On a machine with GPUs what lies on them goes by nccl, all else by gloo.

    Raises:
        PeerLost: one of them has not come (X831).
    """
    if here.by == "srun":
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    store = os.environ.get(STORE)
    with told_as_lost(here.rank):
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"file://{store}" if store else "env://",
            rank=here.rank,
            world_size=here.world,
            timeout=timedelta(seconds=config.trainer.timeout),
        )
    yield GroupPeers(here)
    # Not after an error: others may be gone, and the group would wait for them.
    distributed.destroy_process_group()


def _first_sentence(text: str) -> str:
    """What a message of gloo or nccl says, without where in its source it says it."""
    line = text.partition("\n")[0]
    return re.sub(r"^\[[^\]]*\]\s*", "", line).split(". ")[0].rstrip(".")[:200]


@contextlib.contextmanager
def told_as_lost(rank: int) -> Iterator[None]:
    """Says of a failed exchange that a process was lost (X831)."""
    try:
        yield
    except (RuntimeError, OSError) as e:
        text = str(e)
        network = isinstance(e, distributed.DistError)
        if not network and not is_loss(text):
            raise
        slow = "timed out" in text.lower() or "timeout" in text.lower()
        raise peer_lost(rank, _first_sentence(text), slow=slow) from e
