"""A run from beginning to end: directory, config, environment, backend, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castiron.diagnostics import CastironError, ConfigError, Finding, ManifestError, RunError, finding
from castiron.training import processes
from castiron.training.backend import Backend, Job, Outcome, Preview, Reporter, Silent, Status, load_backend
from castiron.training.checkpoints import sweep, to_resume
from castiron.training.config import RunConfig
from castiron.training.config_file import LoadedConfig, configure, load_config, resolve_source
from castiron.training.config_merge import Merged
from castiron.training.environment import describe_environment
from castiron.training.followed import FollowedRun
from castiron.training.preemption import Preempted, preemptible
from castiron.training.rank_facts import config_facts
from castiron.training.ranks import PeerLost, alone, check_alike, check_world, rank_here, together, world_of
from castiron.training.registry import recipe_file
from castiron.training.run_directory import CONFIG, ENVIRONMENT, RunDirectory
from castiron.training.yaml_reader import describe

if TYPE_CHECKING:
    from castiron.training.manifest_check import OnMismatch
    from castiron.training.recipe import Recipe

RUNS = Path("runs")
"""Where runs go unless another folder is given."""

CHANGEABLE = frozenset(
    {
        "max_epochs",
        "max_steps",
        "log_every",
        "checkpoint_every",
        "keep_last",
        "keep_best",
        "early_stopping",
        "threads",
        "timeout",
    }
)
"""Settings of `trainer` that may change when a run is resumed, beside all of `guard`; any other would make it
another run."""


SHARING = frozenset(
    {("trainer", "devices"), ("trainer", "nodes"), ("trainer", "strategy"), ("data", "batch_size")}
)
"""Settings that may change on resuming as long as the batches of all processes together have as many rows."""


def train(
    loaded: LoadedConfig, *, runs: Path = RUNS, name: str | None = None, reporter: Reporter | None = None,
    weights: Path | None = None, on_mismatch: OnMismatch = "refuse",
) -> tuple[RunDirectory, Outcome]:  # fmt: skip
    """Train a new run.

    Args:
        weights: a file of any origin to start from; read as data, verified before anything is loaded.
        on_mismatch: what is done where its formats are not those of the policy.

    Raises:
        CastironError: a mistake in config, data or names; the run's directory is removed again where nothing
            was trained.
    """

    def begin() -> tuple[RunDirectory, Path | None]:
        return RunDirectory.create(Path(runs), loaded.recipe.name, name), None

    return _launch(loaded, begin, reporter or Silent(), weights=weights, on_mismatch=on_mismatch)


def train_recipe(
    recipe: type[Recipe], *, runs: Path | str = RUNS, name: str | None = None,
    reporter: Reporter | None = None, **settings: Any,
) -> tuple[RunDirectory, Outcome]:  # fmt: skip
    """Train a recipe class from Python; what is said here lies over its default config.

        run, outcome = train_recipe(MyRecipe, precision="bf16-mixed", trainer={"max_epochs": 1})

    Raises:
        CastironError: a mistake in the settings or the data.
    """
    config = configure(recipe, **settings)
    loaded = LoadedConfig(config, recipe, config.recipe, Merged())
    return train(loaded, runs=Path(runs), name=name, reporter=reporter)


def resume(
    run: RunDirectory, overrides: Sequence[str] = (), *, source: str | None = None,
    reporter: Reporter | None = None, on_mismatch: OnMismatch = "refuse",
) -> tuple[RunDirectory, Outcome]:  # fmt: skip
    """Go on with a run from its newest checkpoint that is whole; from the beginning where it has none yet.

    Args:
        on_mismatch: what is done where the policy is another than that of the checkpoint.
        run: the run.
        overrides: what to change; only `CHANGEABLE` settings can be.
        source: a config file that the run is supposed to be of; refused where it says otherwise.
        reporter: where to say what is done.

    Raises:
        CastironError: a setting differs that makes it another run (X815), or no checkpoint is whole or fits
            (C6xx). Nothing is changed then.
    """
    before = load_run(run)
    file = source if source is not None and resolve_source(source).file else None
    loaded = load_config(file, overrides) if file else load_config(run.path / CONFIG, overrides)
    _same_run(before.config, loaded, run)
    if file is None:
        _refuse_idle_preset(before, loaded, run)
    reporter = reporter or Silent()

    def begin() -> tuple[RunDirectory, Path | None]:
        checkpoint = to_resume(run, lambda found: reporter.findings([found]))
        if checkpoint is None:
            reporter.say("The run has no checkpoint yet: it starts from its beginning.")
        return run, checkpoint

    return _launch(loaded, begin, reporter, on_mismatch=on_mismatch, again=True)


def preview(loaded: LoadedConfig, run: RunDirectory, reporter: Reporter | None = None) -> Preview:
    """What a run would be, without training; `run` is a folder to work in.

    Raises:
        CastironError: the plan, the device or the data refuse it.
    """
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, reporter=reporter or Silent())
    with loaded.placing():
        return load_backend(loaded.config.backend).preview(job)


def load_run(run: RunDirectory, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The config of a run, with the recipe it was trained from."""
    return load_config(run.path / CONFIG, overrides)


def _launch(
    loaded: LoadedConfig, begin: Callable[[], tuple[RunDirectory, Path | None]], reporter: Reporter, *,
    weights: Path | None = None, on_mismatch: OnMismatch = "refuse", again: bool = False,
) -> tuple[RunDirectory, Outcome]:  # fmt: skip
    """Train, in this process, in several that were started with it, or in several that are started here.

    Args:
        begin: makes or finds the run, and says what it goes on from; called by the process that writes.
    """
    config = loaded.config
    here = rank_here(backend=config.backend)
    backend = load_backend(config.backend)
    check_world(config, here)
    with backend.peers(here, config) if here else alone() as peers:
        check_alike(peers, "config", config_facts(config))
        begun = together(peers, lambda: begin() if peers.rank == 0 else None)
        where, checkpoint = peers.gather((begun[0].path.resolve(), begun[1]) if begun else None)[0]
        run = begun[0] if begun else FollowedRun(where)
        job = Job(
            config=config, recipe=loaded.recipe, run=run, checkpoint=checkpoint, weights=weights,
            on_mismatch=on_mismatch, reporter=reporter if peers.rank == 0 else Silent(), peers=peers,
        )  # fmt: skip
        return run, _fit(backend, job, loaded, again=again)


def _fit(backend: Backend, job: Job, loaded: LoadedConfig, *, again: bool = False) -> Outcome:
    started = time.perf_counter()
    run = job.run
    try:
        with preemptible(), run.claimed(), loaded.placing():
            if job.peers.rank == 0:
                sweep(run)
            if again and job.checkpoint is None:
                run.trim_metrics(-1)
            before = {name: run.read_bytes(name) for name in (CONFIG, ENVIRONMENT)}
            run.write_config(job.config)
            run.write_json(ENVIRONMENT, describe_environment(recipe_file(job.recipe)))
            try:
                outcome = _train(backend, job)
            except ManifestError:
                # Refused before anything was loaded: the run is left as it was found.
                for name, content in before.items():
                    run.put_back(name, content)
                raise
    except CastironError as e:
        if _is_lock(e) or (again and isinstance(e, ManifestError)):
            raise
        if again or not run.discard_if_unused():
            _fail(run, job, str(e), time.perf_counter() - started, e.findings, lost=isinstance(e, PeerLost))
        raise
    except Preempted as e:
        outcome = _ended(run, "stopped", started, f"{e} came while no step was under way.")
    except KeyboardInterrupt:
        outcome = _ended(run, "interrupted", started)
    except BaseException as e:
        _fail(run, job, f"{type(e).__name__}: {e}", time.perf_counter() - started)
        raise
    finally:
        job.reporter.end()
        run.close()
    run.write_summary(outcome, job.config)  # which does nothing on other ranks than the first
    return outcome


def _train(backend: Backend, job: Job) -> Outcome:
    """In this process, or in as many as the config asks for and nobody has started."""
    if job.peers.world == 1 and world_of(job.config) > 1:
        return processes.fit(job)
    return backend.fit(job)


def _fail(
    run: RunDirectory, job: Job, message: str, duration_s: float, findings: Sequence[Finding] = (),
    *, lost: bool = False,
) -> None:  # fmt: skip
    if run.path.is_dir() and job.peers.rank == 0:
        outcome = Outcome(
            status="stopped" if lost else "failed",
            steps=_steps(run),
            duration_s=duration_s,
            message=message,
            findings=tuple(findings),
        )
        with suppress(RunError):  # what is told is why the run failed, not that this cannot be written either
            run.write_summary(outcome, job.config)


def _ended(run: RunDirectory, status: Status, started: float, message: str = "") -> Outcome:
    duration = time.perf_counter() - started
    return Outcome(status=status, steps=_steps(run), duration_s=duration, message=message)


def _is_lock(error: CastironError) -> bool:
    return isinstance(error, RunError) and any(f.code == "X817" for f in error.findings)


def _steps(run: RunDirectory) -> int:
    rows = run.metrics()
    return int(rows[-1].get("step", 0)) if rows else 0


def _same_run(before: RunConfig, loaded: LoadedConfig, run: RunDirectory) -> None:
    changed = list(_differences(before.resolved(), loaded.config.resolved()))
    rows, rows_before = (world_of(c) * c.data.batch_size for c in (loaded.config, before))
    shared = (
        f"All processes together must take as many rows a step as before ({rows_before:,}, now {rows:,})."
    )
    problems = [
        finding(
            "X815", shared if path in SHARING else "A resumed run cannot change this setting.",
            place=loaded.merged.locate(path),
            expected=f"{describe(old)}, as in the run {run.name}", received=describe(new),
            remedy="Start a new run, or leave the setting out: castiron train --resume "
            f"{run.name} takes everything from the run.",
        )
        for path, old, new in changed
        if not (
            path[0] in ("guard", "precision")  # of precision, the checkpoint's manifest decides
            or (len(path) > 1 and path[0] == "trainer" and path[1] in CHANGEABLE)
            or (path in SHARING and rows == rows_before)
        )
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)


def _refuse_idle_preset(before: LoadedConfig, loaded: LoadedConfig, run: RunDirectory) -> None:
    """Refuse a mapping that names another preset: the run's config spells every format out, each stays as it
    is under the mapping, and the preset would be a name alone (X815)."""
    old, now = before.merged.tree.get("precision"), loaded.merged.tree.get("precision")
    new = now.get("preset") if isinstance(now, Mapping) else None
    if new is not None and isinstance(old, Mapping) and new != old.get("preset"):
        raise ConfigError(
            finding(
                "X815",
                "A preset within a mapping changes no format of a run, whose config spells each of them out.",
                place=loaded.merged.locate(("precision", "preset")),
                expected=f"precision={new}",
                received=f"precision={{preset: {new}, …}}",
                remedy=f"Name the policy alone: castiron train --resume {run.name} precision={new} "
                "--on-mismatch cast; single formats are changed by precision.KEY=FORMAT.",
            )
        )


def _differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), (*path, k))]
    return [] if old == new else [(path, old, new)]
