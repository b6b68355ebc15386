"""A trained run, carried from one wing to the other: same recipe, same data, same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from castiron.diagnostics import ConfigError, Place, RunError, finding
from castiron.training.backend import BackendName, Job, Outcome, load_backend
from castiron.training.environment import describe_environment
from castiron.training.launch import load_run
from castiron.training.registry import recipe_file
from castiron.training.run_directory import ENVIRONMENT, RunDirectory


def convert(
    run: RunDirectory,
    to: BackendName,
    *,
    runs: Path,
    name: str | None = None,
    which: Literal["best", "last"] = "best",
) -> RunDirectory:
    """Make a run of the other backend with a run's weights, to evaluate, predict and export. → the new run.

    Its weights are the averaged ones where the run kept an average. What is only of use in training (the
    optimizer's state, generators) is not carried over.

    Args:
        runs: where the new run goes.
        name: of the new run; by default the run's, with the backend behind it.

    Raises:
        ConfigError: it is a run of that backend already (X815), or the recipe cannot be carried (X814).
        CastironError: the run has no checkpoint, or does not hold any more.
    """
    loaded = load_run(run)
    if loaded.config.backend == to:
        raise ConfigError(
            finding(
                "X815",
                f"The run is one of backend {to} already.",
                place=Place(file=str(run.path)),
                expected="the other backend",
                received=to,
            )
        )
    target = load_run(run, [f"backend={to}"])
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint(which))
    source: Any = load_backend(loaded.config.backend)
    weights = source.weights(job)
    recipe = target.recipe(target.config)
    recipe.load(run.assets)
    carried = recipe.carried(weights, to)
    new = RunDirectory.create(Path(runs), loaded.recipe.name, name or f"{run.path.name}-{to}")
    try:
        shutil.copytree(run.assets, new.assets, dirs_exist_ok=True)
        new.write_config(target.config)
        new.write_json(ENVIRONMENT, describe_environment(recipe_file(loaded.recipe)))
        destination: Any = load_backend(to)
        destination.adopt(Job(config=target.config, recipe=target.recipe, run=new), carried)
        steps = int(run.summary().get("steps", 0))
        message = f"Weights of {loaded.config.backend} run {run.path.name}, step {steps}."
        new.write_summary(Outcome(status="completed", steps=steps, message=message), target.config)
    except OSError as e:
        raise RunError(
            finding("X819", f"The run cannot be written: {e.strerror or e}.", place=Place(file=str(new.path)))
        ) from e
    finally:
        new.close()
    return new
