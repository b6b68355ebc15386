"""The processes of a training, connected by TensorFlow's own cluster: its coordination service for what the
host has to say, `MultiWorkerMirroredStrategy` for what steps exchange."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from castiron.diagnostics import CastironError, ConfigError, Place, finding
from castiron.keras.determinism import set_threads
from castiron.training.config import RunConfig
from castiron.training.ranks import STORE, PeerLost, Peers, Rank, addresses, is_loss, peer_lost

_SHUTDOWN_MS = 5_000
"""Time that all have to end together, once training is over."""
_HEARTBEAT_S = 30.0
"""A process that was not heard of for so long is gone. Within a step, a killed one is noticed at once."""
_LOOK_MS = 1_000
"""While one waits for what another has to say: between looks at whether it is still there."""
_LOST = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
"""What TensorFlow raises where another process is gone, or is not heard of."""
_NODE = re.compile(r"\{\{[^{}]*\}\}")


class ClusterPeers:
    """Peers by way of TensorFlow's coordination service."""

    def __init__(self, here: Rank, strategy: Any, timeout: float) -> None:
        self.rank, self.world = here.rank, here.world
        self.strategy = strategy
        """The `tf.distribute` strategy of all of them."""
        self._timeout = timeout
        self._number = 0

    def gather(self, value: Any) -> list[Any]:
        service, number = context.context(), self._number
        self._number += 1
        with told_as_lost(self.rank):
            text = base64.b64encode(pickle.dumps(value)).decode("ascii")
            service.set_config_key_value(_key(number, self.rank), text)
            found = [self._wait_for(_key(number, rank), self._timeout) for rank in range(self.world)]
            if number > 0:  # all have come here, so all have read what was before
                service.delete_config_key_value(_key(number - 1, self.rank))
        return [pickle.loads(base64.b64decode(text)) for text in found]

    def leave(self, within: float | None = None) -> None:
        """The end. Rank 0 has the service and goes last, once it has heard of all others.

        Args:
            within: seconds that rank 0 waits for them; None: `trainer.timeout`.
        """
        if self.rank:
            with contextlib.suppress(*_LOST):  # rank 0 may be gone before its answer is here
                context.context().set_config_key_value(f"castiron/done/{self.rank}", "")
            return
        with told_as_lost(self.rank):
            for rank in range(1, self.world):
                self._wait_for(f"castiron/done/{rank}", self._timeout if within is None else within)

    def _wait_for(self, key: str, timeout: float) -> str:
        """A value, once it is there. The service answers nothing to who waits for one that is gone, so it is
        asked for a moment at a time."""
        service, until = context.context(), time.monotonic() + timeout
        while True:
            left_ms = int(1000 * (until - time.monotonic()))
            try:
                value: str = service.get_config_key_value(key, max(min(left_ms, _LOOK_MS), 1))
                return value
            except tf.errors.DeadlineExceededError:
                if left_ms <= _LOOK_MS:
                    raise
            for state in service.get_task_states([("worker", self.world)]):
                if state is not None:
                    raise state


def _key(number: int, rank: int) -> str:
    return f"castiron/{number}/{rank}"


@contextlib.contextmanager
def connected(here: Rank, config: RunConfig) -> Iterator[Peers]:
    """Connect with the others; wait for them at most `trainer.timeout` seconds, now and at each exchange.

    To be called before TensorFlow's first operation: it fixes the devices and threads of this process.

    Raises:
        PeerLost: one of them has not come (X831).
        ConfigError: they were started by what TensorFlow does not know (X815).
    """
    # Where it is moved in a later TensorFlow, only this is lost.
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2

    timeout = config.trainer.timeout
    _own_devices(here, config)
    with told_as_lost(here.rank), contextlib.ExitStack() as scratch:
        workers = scratch.enter_context(_workers(here, timeout))
        milliseconds = max(int(1000 * timeout), 1)
        context.context().configure_coordination_service(
            service_type="standalone",
            service_leader="/job:worker/replica:0/task:0",
            cluster_register_timeout_in_ms=milliseconds,
            heartbeat_timeout_in_ms=max(int(1000 * min(timeout, _HEARTBEAT_S)), 1),
            shutdown_barrier_timeout_in_ms=_SHUTDOWN_MS,
            coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=here.world)],
        )
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": workers}),
                task_type="worker",
                task_id=here.rank,
                rpc_layer="grpc",
            ),
            tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout),
        )
        peers = ClusterPeers(here, strategy, timeout)
        peers.gather(None)
    try:
        yield peers
    except PeerLost:
        raise
    except CastironError:
        # What all refuse, each has to hear of: rank 0's service is there until they have.
        with contextlib.suppress(PeerLost):
            peers.leave(within=_SHUTDOWN_MS / 1000)
        raise
    peers.leave()


def _own_devices(here: Rank, config: RunConfig) -> None:
    """The threads and the GPU of this process, of those on its machine."""
    threads = config.trainer.threads
    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        threads = int(os.environ["OMP_NUM_THREADS"])  # by whoever started several processes here
    set_threads(threads)
    gpus = tf.config.list_physical_devices("GPU")
    tf.config.set_visible_devices([] if config.trainer.device == "cpu" else gpus[here.local :][:1], "GPU")


@contextlib.contextmanager
def _workers(here: Rank, timeout: float) -> Iterator[list[str]]:
    """Where each process is to be found, by rank; within it, all may still ask."""
    if here.by == "TF_CONFIG":
        yield addresses(json.loads(os.environ["TF_CONFIG"]))
    elif here.by == "castiron":
        own = Path(f"{os.environ[STORE]}.{here.rank}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        temporary = own.with_name(own.name + ".new")
        temporary.write_text(address, encoding="ascii")
        temporary.rename(own)
        try:
            yield [_read(Path(f"{os.environ[STORE]}.{rank}"), rank, timeout) for rank in range(here.world)]
        finally:
            own.unlink(missing_ok=True)
    else:
        raise ConfigError(
            finding(
                "X815",
                f"TensorFlow does not hear from {here.by} where its processes are.",
                place=Place(key="trainer.nodes"),
                expected="castiron train alone, or the variable TF_CONFIG for each process",
                received=f"{here.world} processes, started by {here.by}",
                remedy="Set TF_CONFIG to the addresses of all workers and the index of each.",
            )
        )


def _read(path: Path, rank: int, timeout: float) -> str:
    until = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > until:
            raise peer_lost(rank, "it has not come", slow=True)
        time.sleep(0.01)
    return path.read_text(encoding="ascii")


@contextlib.contextmanager
def told_as_lost(rank: int) -> Iterator[None]:
    """Says of a failed exchange that a process was lost (X831)."""
    try:
        yield
    except tf.errors.OpError as e:
        if not isinstance(e, _LOST) and not is_loss(e.message):
            raise
        slow = isinstance(e, tf.errors.DeadlineExceededError)
        raise peer_lost(rank, _cause(e.message), slow=slow) from e


def _cause(message: str) -> str:
    """What there is to say of a failed exchange, without where in a graph it was."""
    lines = [_NODE.sub("", line).strip() for line in message.splitlines()]
    told = next((line for line in lines if line.startswith("Collective ops is aborted by")), None)
    told = told or next((line for line in lines if line and not line.startswith("Graph execution error")), "")
    return told.partition(" [type.googleapis")[0].partition("; last error")[0].rstrip(".")[:200]
