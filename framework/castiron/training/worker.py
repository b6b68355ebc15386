"""One of several processes that castiron started to train together: `python -m castiron.training.worker FD`.

FD is its end of the connection to the process that started it: it gets a `Task`, and tells what it reports
and how it ended. When that process is gone, so is this one.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from castiron.diagnostics import CastironError
from castiron.training.backend import Job, Outcome, Silent, load_backend
from castiron.training.followed import FollowedRun
from castiron.training.launch import load_run
from castiron.training.preemption import Preempted, preemptible
from castiron.training.processes import Relay, Task
from castiron.training.ranks import check_world, rank_here
from castiron.training.run_directory import RunDirectory


def main(descriptor: int) -> int:
    """Do what the connection says. → the exit code."""
    connection: Connection[Any, Any] = Connection(descriptor)
    task: Task = connection.recv()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    code = 1
    said: str
    content: Any
    try:
        with preemptible():
            said, content = "outcome", _fit(task, connection)
        code = 0
    except CastironError as e:
        said, content = "error", e
    except Preempted as e:
        said, content = "preempted", str(e)
    except KeyboardInterrupt:
        said, content = "interrupted", None
    except BaseException:
        said, content = "bug", traceback.format_exc()
    connection.send((said, content))
    return code


def _fit(task: Task, connection: Connection[Any, Any]) -> Outcome:
    loaded = load_run(RunDirectory(task.run))
    here = rank_here(backend=loaded.config.backend)
    assert here is not None
    check_world(loaded.config, here)
    backend = load_backend(loaded.config.backend)
    run = RunDirectory(task.run) if here.rank == 0 else FollowedRun(task.run)
    with backend.peers(here, loaded.config) as peers, loaded.placing():
        job = Job(
            config=loaded.config,
            recipe=loaded.recipe,
            run=run,
            checkpoint=task.checkpoint,
            weights=task.weights,
            on_mismatch=task.on_mismatch,  # type: ignore[arg-type]
            reporter=Relay(connection, task.verbosity) if here.rank == 0 else Silent(),
            peers=peers,
        )
        try:
            return backend.fit(job)
        finally:
            run.close()


def _end_with(connection: Connection[Any, Any]) -> None:
    """End this process with the one that started it."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever threads of a lost connection still wait for
