"""`castiron suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from castiron.training.suggesting import Suggestion


def suggest(
    config: Annotated[str, typer.Argument(metavar="CONFIG|RECIPE", help="What is to be trained.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches that ranges are measured on.")] = 8,
    steps: Annotated[int, typer.Option(min=8, help="Steps of each run of the proof.")] = 60,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of the proof.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.yaml", help="Write the config with the policy."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Propose a policy, proved beside float32.

    For this model, data and machine.

    \b
    castiron suggest lstm-sentiment
    castiron suggest my_config.yaml -o my_config_fast.yaml
    """
    from castiron.cli import console
    from castiron.training.suggesting import suggest as find

    quiet = console.note if not json else (lambda _: None)
    found = find(config, overrides or [], batches=batches, steps=steps, seeds=seeds, say=quiet)
    if output is not None:
        _write(found, config, overrides or [], output)
    if json:
        console.as_json(_record(found))
        return
    _tell(found)
    if output is not None:
        console.say(f"{output}")


def _tell(found: Suggestion) -> None:
    from castiron.cli import console

    console.heading(f"precision: {_inline(found)}")
    console.table(
        ("preset", "ms a step", "kept in float32", "why not"),
        [
            (
                c.preset,
                f"{c.step_ms:.1f}" if c.step_ms else None,
                ", ".join(c.wide[:4]) + (f" and {len(c.wide) - 4} more" if len(c.wide) > 4 else ""),
                c.refused,
            )
            for c in found.candidates
        ]
        + [("float32", f"{found.float32_ms:.1f}", "", "")],
    )
    if found.proof is None:
        console.say(
            f"float32 it is ({found.float32_ms:.1f} ms a step on {found.device}): nothing that this device "
            "computes itself is faster and as good."
        )
    else:
        p = found.proof
        console.say(
            f"In the proof it is {found.gain:.2f} times as fast as float32: {p.proposed_ms:.1f} ms a step, "
            f"{p.float32_ms:.1f} ms. After {p.steps} steps its loss is {p.difference:+.2g} from float32's, "
            f"whose {len(p.seeds)} seeds lie {p.noise:.2g} apart."
        )
    for note in found.notes:
        console.say(note)
    if found.findings:
        console.findings(found.findings)


def _inline(found: Suggestion) -> str:
    precision = found.precision()
    if isinstance(precision, str):
        return precision
    rules = ", ".join(f'"{path}": {{compute: float32}}' for path in precision["layers"])
    return f"{{preset: {precision['preset']}, layers: {{{rules}}}}}"


def _write(found: Suggestion, source: str, overrides: list[str], file: Path) -> None:
    """The config as it was resolved, with the policy in it."""
    from castiron.cli.copying import write_new
    from castiron.training.config_file import load_config
    from castiron.training.yaml_writer import as_yaml

    loaded = load_config(source, [*overrides, f"precision={_inline(found)}"])
    header = f"Precision suggested by `castiron suggest {source}` on {found.device}."
    write_new(file, as_yaml(loaded.config.resolved(), header))


def _record(found: Suggestion) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "precision": found.precision(),
        "policy": str(found.policy),
        "device": found.device,
        "gain": found.gain,
        "float32_ms": found.float32_ms,
        "candidates": [
            {"preset": c.preset, "wide": list(c.wide), "refused": c.refused, "step_ms": c.step_ms}
            for c in found.candidates
        ],
        "proof": {**asdict(found.proof), "noise": found.proof.noise, "difference": found.proof.difference}
        if found.proof
        else None,
        "notes": list(found.notes),
        "findings": [f.as_dict() for f in found.findings],
    }
