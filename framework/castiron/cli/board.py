"""`castiron board`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# TensorBoard imports TensorFlow where it is installed (3 s), unless this module is there.
_WITHOUT_TENSORFLOW = """
import sys, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
from tensorboard.main import run_main
run_main()
"""


def board(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder of runs, or one run.")] = Path(
        "runs"
    ),
    port: Annotated[int | None, typer.Option(help="Port; the next free one from 6006 by default.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "localhost",
) -> None:
    """Show runs in TensorBoard. Ctrl-C ends it."""
    import subprocess
    import sys

    from castiron.cli import console
    from castiron.diagnostics import Place, RunError, finding

    if not runs.is_dir():
        raise RunError(
            finding("X818", "There is no such folder of runs.", place=Place(file=str(runs)),
                    remedy="Train something first, or give the folder: castiron board DIR.")
        )  # fmt: skip
    if not any(runs.rglob("events.out.tfevents.*")):
        console.note(f"There are no events below '{runs}' yet; the pages fill when training starts.")
    port = free_port(host, port)
    console.say(f"TensorBoard on http://{host}:{port}/  (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-c",
        _WITHOUT_TENSORFLOW,
        "--logdir",
        str(runs),
        "--host",
        host,
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        code = 0
    raise typer.Exit(code)


def free_port(host: str, wanted: int | None) -> int:
    """A port that can be listened on.

    Raises:
        ConfigError: the wanted one is taken (X820).
    """
    import socket

    from castiron.diagnostics import ConfigError, finding

    for port in (wanted,) if wanted is not None else range(6006, 6106):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError):
                continue
            return port
    message = f"Port {wanted} on {host} cannot be used." if wanted is not None else "No port is free."
    raise ConfigError(finding("X820", message, remedy="Give another --port."))
