"""What `castiron validate` looks at beyond the config itself: data files and the device."""

from __future__ import annotations

from collections.abc import Sequence

from castiron.data.readers.files import find_files
from castiron.diagnostics import CastironError, Finding
from castiron.policy.hardware import compute_of, judge
from castiron.training.backend import load_backend
from castiron.training.config_file import LoadedConfig, load_config
from castiron.training.splits import about_key, no_training_data


def check(source: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Everything that can be said of a config without training: what does not stop it is returned.

    Raises:
        CastironError: what is wrong with it.
    """
    loaded = load_config(source, overrides)
    problems = missing_files(loaded)
    data = loaded.config.data
    warnings = [no_training_data("warning")] if data.train is None and not data.embedded else []
    try:
        warnings += device_findings(loaded)
    except CastironError as e:
        problems += e.findings
    return loaded.placed([*problems, *warnings])


def missing_files(loaded: LoadedConfig) -> list[Finding]:
    """Data files that are not there, each at the key that names it."""
    problems: list[Finding] = []
    for split in ("train", "validation", "test"):
        paths = getattr(loaded.config.data, split)
        if paths is None:
            continue
        try:
            with about_key(f"data.{split}"):
                find_files([paths] if isinstance(paths, str) else paths)
        except CastironError as e:
            problems += e.findings
    return problems


def device_findings(loaded: LoadedConfig) -> list[Finding]:
    """Whether the device computes matrix products, which every model has, in the policy's formats.

    Which other layers a model has is known once it is built: `castiron train CONFIG --dry-run`.

    Raises:
        HardwareError: it does not.
    """
    config = loaded.config
    computes = {compute_of(config.precision, "matmul"), *_ruled(loaded)}
    if computes == {"float32"} and config.trainer.device in ("auto", "cpu"):
        return []  # every CPU does; no framework need be imported to know
    capability = load_backend(config.backend).capability(config.trainer.device)
    return judge(config.precision, [("matmul", c, "") for c in sorted(computes)], capability)


def _ruled(loaded: LoadedConfig) -> set[str]:
    return {rule.compute for rule in loaded.config.precision.layers.values() if rule.compute}
