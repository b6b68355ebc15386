"""Starts the processes of a training on this machine, waits for them, and says what became of them.

The process that was asked to train starts one for each device and trains nothing itself: it shows what rank 0
reports, hands signals on, and sees at once when one of them ends. None outlives it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from castiron.diagnostics import CastironError, finding
from castiron.training.backend import Job, Outcome, Reporter
from castiron.training.environment import cpus_usable
from castiron.training.preemption import Preempted
from castiron.training.ranks import STORE, PeerLost, world_of

GRACE_S = 10.0
"""Seconds that the others have to end by themselves once one has ended badly."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told to do; the config is the one in the run's folder."""

    run: Path
    checkpoint: Path | None
    weights: Path | None
    on_mismatch: str
    verbosity: str


class _Worker:
    """One process, and what it has said last."""

    def __init__(self, rank: int, environment: dict[str, str], task: Task, log: Path) -> None:
        self.rank, self.log = rank, log
        self.said: tuple[str, Any] | None = None
        self.ended_by_us = False
        self.connection, theirs = Pipe()
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "castiron.training.worker", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C in the terminal comes by way of this process, once
            )
        theirs.close()
        self.connection.send(task)

    def listen(self, reporter: Reporter) -> bool:
        """Take one message; False when there will be no more."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.connection.close()
            self.process.wait()
            return False
        if kind == "report":
            if self.rank == 0:
                getattr(reporter, content[0])(*content[1:])
        else:
            self.said = (kind, content)
        return True

    def kill(self) -> None:
        self.ended_by_us = True
        self.process.kill()

    def how_it_ended(self) -> str:
        """`was killed by SIGKILL`, `ended with exit code 3`."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def last_words(self) -> str:
        """The end of what it wrote to its terminal."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-5:])


def fit(job: Job) -> Outcome:
    """Train a job in as many processes as its config asks for. → what rank 0 says of it.

    Raises:
        PeerLost: a process ended unexpectedly (X831); the others were ended.
        CastironError: what the processes refused, or stopped at.
    """
    with tempfile.TemporaryDirectory(prefix="castiron-ranks-") as folder:
        workers = _start(job, Path(folder))
        try:
            with _Forwarding(workers):
                _wait(workers, job.reporter)
        finally:
            for worker in workers:
                if worker.process.poll() is None:
                    worker.kill()
                    worker.process.wait()
                worker.connection.close()
        return _conclude(workers, job)


def _start(job: Job, folder: Path) -> list[_Worker]:
    world = world_of(job.config)
    task = Task(job.run.path, job.checkpoint, job.weights, job.on_mismatch, job.reporter.verbosity)
    shared = dict(os.environ) | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "TORCHELASTIC_RUN_ID": "castiron",
        STORE: str(folder / "store"),
    }
    # Left alone, each would take all cores for itself.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, cpus_usable() // world)))
    if Path("/sys/class/net/lo").exists():  # the machine's own name need not resolve
        shared.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return [
        _Worker(
            rank, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, task, folder / f"rank-{rank}.log"
        )
        for rank in range(world)
    ]


def _wait(workers: list[_Worker], reporter: Reporter) -> None:
    """Until all have ended; those that do not end by themselves, once one ended badly, are killed."""
    alive: dict[Connection[Any, Any], _Worker] = {w.connection: w for w in workers}
    deadline = None
    while alive:
        left = None if deadline in (None, math.inf) else max(deadline - time.monotonic(), 0)
        ready = wait(list(alive), left)
        for connection in ready:
            worker = alive[connection]  # type: ignore[index]
            if not worker.listen(reporter):
                del alive[connection]  # type: ignore[arg-type]
                bad = worker.process.returncode != 0 or worker.said is None
                if bad and deadline is None:
                    deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() >= deadline:
            for worker in alive.values():
                worker.kill()
            deadline = math.inf


class _Forwarding:
    """Hands signals on to the workers; only the main thread can."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._former[number] = signal.signal(number, self._hand_on)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _hand_on(self, number: int, frame: object) -> None:
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)


def _conclude(workers: list[_Worker], job: Job) -> Outcome:
    """What the training came to: the first cause, where there are several."""
    silent = [w for w in workers if w.said is None]
    lost = [w for w in silent if not w.ended_by_us] or silent
    refused = [w for w in workers if w.said is not None and w.said[0] == "error"]
    causes = [w for w in refused if not isinstance(_content(w), PeerLost)]
    bugs = [w for w in workers if w.said is not None and w.said[0] == "bug"]
    if lost and not causes and not bugs:
        raise _lost(lost, job)
    if causes:
        raise _content(causes[0])
    if bugs:
        raise RuntimeError(f"rank {bugs[0].rank} failed:\n{_content(bugs[0])}")
    if refused:
        raise _content(refused[0])
    for worker in workers:
        if worker.said is not None and worker.said[0] == "preempted":
            raise Preempted(_content(worker))
        if worker.said is not None and worker.said[0] == "interrupted":
            raise KeyboardInterrupt
    outcome: Outcome = _content(workers[0])
    return outcome


def _content(worker: _Worker) -> Any:
    assert worker.said is not None
    return worker.said[1]


def _lost(workers: list[_Worker], job: Job) -> CastironError:
    found = []
    for worker in workers:
        how = "gave no answer and was ended" if worker.ended_by_us else worker.how_it_ended()
        words = worker.last_words()
        found.append(
            finding(
                "X831",
                f"Rank {worker.rank} of {world_of(job.config)} {how}; the others were ended too.",
                received=f"as its last words: {words}" if words else None,
                remedy="Look at what ended it (memory, the machine); then go on with it by: castiron train "
                f"--resume {job.run.path}",
                rank=worker.rank,
            )
        )
    return PeerLost(found)


class Relay:
    """A reporter that tells another process, by way of a connection."""

    def __init__(self, connection: Connection[Any, Any], verbosity: Any) -> None:
        self.verbosity = verbosity
        self._connection = connection

    def say(self, text: str) -> None:
        self._tell("say", text)

    def findings(self, findings: Any) -> None:
        self._tell("findings", list(findings))

    def plan(self, plan: Any) -> None:
        self._tell("plan", plan)

    def data(self, reports: Any) -> None:
        self._tell("data", dict(reports))

    def begin(self, progress: Any) -> None:
        self._tell("begin", replace(progress, metrics=dict(progress.metrics)))

    def update(self, progress: Any) -> None:
        self._tell("update", replace(progress, metrics=dict(progress.metrics)))

    def end(self) -> None:
        self._tell("end")

    def _tell(self, *content: Any) -> None:
        self._connection.send(("report", content))
