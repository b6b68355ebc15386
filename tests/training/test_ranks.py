"""Which process this is, and how several come to one mind, without any framework."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from castiron.diagnostics import ConfigError, DataError, finding
from castiron.training.config import RunConfig
from castiron.training.ranks import (
    STORE,
    Rank,
    check_alike,
    check_world,
    first_then_others,
    is_told,
    rank_here,
    speaker,
    together,
)

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def test_a_process_knows_its_place_from_who_started_it() -> None:
    assert rank_here({}) is None
    assert rank_here(TORCHRUN) == Rank(3, 4, 1, "torchrun")
    assert rank_here(TORCHRUN | {STORE: "/tmp/store"}) == Rank(3, 4, 1, "castiron")
    assert rank_here(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None
    srun = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    assert rank_here(srun) == Rank(5, 8, 1, "srun")
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert rank_here(batch_script) is None


def tf_config(kind: str, index: int, **cluster: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_tf_config_tells_it_to_tensorflow_alone() -> None:
    workers = ["a:1", "a:2", "b:1"]
    told = tf_config("worker", 1, worker=workers)
    assert rank_here(told) is None
    assert rank_here(told, backend="tensorflow") == Rank(1, 3, 1, "TF_CONFIG")
    last = tf_config("worker", 2, worker=workers)
    assert rank_here(last, backend="tensorflow") == Rank(2, 3, 0, "TF_CONFIG")
    first = tf_config("worker", 0, chief=["a:1"], worker=["b:1"])
    assert rank_here(first, backend="tensorflow") == Rank(1, 2, 0, "TF_CONFIG")
    assert rank_here(tf_config("worker", 0, worker=["a:1"]), backend="tensorflow") is None
    assert rank_here({"TF_CONFIG": "{}"}, backend="tensorflow") is None
    ps = tf_config("ps", 0, worker=workers, ps=["c:1"])
    for odd in ({"TF_CONFIG": "{"}, {"TF_CONFIG": "[]"}, tf_config("worker", 3, worker=workers), ps):
        with pytest.raises(ConfigError, match="X815 TF_CONFIG does not say which worker this process is"):
            rank_here(odd, backend="tensorflow")


def test_who_speaks_of_a_held_step() -> None:
    assert speaker([None, False, True]) == 2
    assert speaker([None, False, False]) == 1
    assert speaker([True]) == 0


def config(**trainer: Any) -> RunConfig:
    return RunConfig(recipe="lstm-sentiment", trainer=trainer)


def test_a_config_asks_for_as_many_processes_as_there_are() -> None:
    check_world(config(), None)
    check_world(config(devices=2), None)  # castiron starts them
    check_world(config(devices=2, nodes=2), Rank(0, 4, 0, "torchrun"))
    with pytest.raises(ConfigError, match=r"than torchrun started. Expected 4: .* Received 2 times 1"):
        check_world(config(devices=2), Rank(0, 4, 0, "torchrun"))
    with pytest.raises(ConfigError, match="castiron starts the processes of one machine only"):
        check_world(config(devices=2, nodes=2), None)


class Threads:
    """Two ranks as two threads."""

    world = 2

    def __init__(self, rank: int, given: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._given, self._barrier = rank, given, barrier

    def gather(self, value: Any) -> list[Any]:
        self._given[self.rank] = value
        self._barrier.wait(10)
        found = list(self._given)
        self._barrier.wait(10)
        return found


def on_both(action: Any) -> list[Any]:
    """What it returns, or raises, on each."""
    given: list[Any] = [None, None]
    ended: list[Any] = [None, None]
    barrier = threading.Barrier(2)

    def run(rank: int) -> None:
        try:
            ended[rank] = action(Threads(rank, given, barrier))
        except Exception as e:
            ended[rank] = e

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_what_fails_on_one_rank_fails_on_all_and_is_told_by_the_first() -> None:
    def fails(peers: Threads) -> Any:
        def action() -> str:
            if peers.rank == 1:
                raise DataError(finding("D130", "There is no such file."))
            return "read"

        return together(peers, action)

    first, second = on_both(fails)
    assert isinstance(first, DataError)
    assert isinstance(second, DataError)
    assert first.findings[0].message == "On rank 1: There is no such file."
    assert (is_told(first), is_told(second)) == (False, True)
    assert on_both(lambda peers: together(peers, lambda: peers.rank)) == [0, 1]


def test_the_first_rank_goes_before_the_others() -> None:
    order: list[int] = []
    on_both(lambda peers: first_then_others(peers, lambda: order.append(peers.rank)))
    assert order == [0, 1]


def test_ranks_that_differ_are_told_which_key_and_which_rank() -> None:
    def check(peers: Threads) -> None:
        facts = {"seed": 17, "numpy": "2.0" if peers.rank else "2.1"} | ({"more": 1} if peers.rank else {})
        check_alike(peers, "versions", facts)

    first, second = on_both(check)
    assert isinstance(first, ConfigError)
    assert [f.sentence() for f in first.findings] == [
        "Rank 1 has another 'numpy' than rank 0 (versions). Expected 2.1 (rank 0). Received 2.0 (rank 1).",
        "Rank 1 has another 'more' than rank 0 (versions). Expected nothing (rank 0). Received 1 (rank 1).",
    ]
    assert is_told(second)
