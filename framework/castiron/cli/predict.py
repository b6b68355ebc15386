"""`castiron predict`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from castiron.cli.options import RUNS, OnMismatch, Run, Runs, Weights, Which


def predict(
    run: Run,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="What to predict for.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Inputs: a text per line, or in .jsonl a text or mapping per line; - reads from a pipe."
        ),
    ] = None,
    checkpoint: Which = "best",
    weights: Weights = None,
    on_mismatch: OnMismatch = "refuse",
    runs: Runs = RUNS,
    json: Annotated[bool, typer.Option("--json", help="For programs: a JSON mapping per line.")] = False,
) -> None:
    """Predict with a trained run, in its own policy.

    \b
    castiron predict lstm-sentiment/first "a good film" "not a good film"
    castiron predict lstm-sentiment/first --file reviews.txt --json
    """
    import json as json_format

    from castiron.cli import console
    from castiron.cli.errors import wrong_arguments
    from castiron.cli.usage import chosen, job_of

    which = chosen("--checkpoint", checkpoint, ("best", "last"))
    if bool(texts) == (file is not None):
        message = "TEXT is missing." if not texts else "TEXT and --file exclude each other."
        raise typer.Exit(wrong_arguments(message, 'Give texts ("a good film") or --file FILE.'))
    inputs: list[str | Mapping[str, Any]] = list(texts) if texts else read_inputs(file or Path("-"))
    backend, job, loaded = job_of(run, runs, which, weights=weights, on_mismatch=on_mismatch)
    if not inputs:
        return
    with loaded.placing():
        answers = backend.predict(job, inputs)
    for given, answer in zip(inputs, answers, strict=True):
        if json:
            sys.stdout.write(json_format.dumps({"input": given, **answer}, ensure_ascii=False) + "\n")
        else:
            told = "  ".join(
                f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in answer.items()
            )
            console.say(f"{told}  {given if isinstance(given, str) else json_format.dumps(given)}")


def read_inputs(file: Path) -> list[str | Mapping[str, Any]]:
    """The inputs in a file: a text per line; in .jsonl a text or a mapping of fields per line.

    Raises:
        ConfigError: the file is missing, not UTF-8, or a line of .jsonl is neither text nor mapping.
    """
    import json

    from castiron.data.files import odd_kind
    from castiron.diagnostics import ConfigError, Place, finding

    def refuse(code: str, message: str, line: int | None = None, **told: str | None) -> ConfigError:
        return ConfigError(finding(code, message, place=Place(file=str(file), line=line), **told))  # type: ignore[arg-type]

    try:
        if str(file) != "-" and (kind := odd_kind(file)):
            remedy = "Give --file - to read from a pipe." if kind != "folder" else None
            raise refuse("X823", "", expected="a file", received=f"a {kind}", remedy=remedy)
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except FileNotFoundError:
        raise refuse("X808", "There is no such file.", remedy="Correct the path.") from None
    except OSError as e:
        raise refuse("X823", f"The file cannot be read: {e.strerror}.") from None
    inputs: list[str | Mapping[str, Any]] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as e:
            received = f"byte 0x{line[e.start]:02x}"
            raise refuse("X823", "", number, expected="text in UTF-8", received=received) from None
        if not text.strip():
            continue
        if file.suffix != ".jsonl":
            inputs.append(text)
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise refuse("X823", f"The line is not JSON: {e}.", number) from None
        if not isinstance(value, str | dict):
            received = type(value).__name__
            raise refuse("X823", "", number, expected="a text or a mapping", received=received)
        inputs.append(value)
    return inputs
