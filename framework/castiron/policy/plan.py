"""The plan: a policy resolved against one model and device; a row per layer, with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.formats import is_wider
from castiron.policy.hardware import DeviceCapability, compute_of, judge
from castiron.policy.matching import matches, near_misses
from castiron.policy.modules import Family, LayerInfo
from castiron.policy.policy import PrecisionPolicy
from castiron.policy.sections import LayerRule

_ROLES = ("param", "compute", "output", "buffers")


class PlanRow(BaseModel):
    """What one layer stores, computes in and hands on, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    type: str
    family: Family | None = None
    param: str
    compute: str
    output: str
    buffers: str
    reasons: dict[str, str]
    """Role → why: the preset or policy, a rule, an island."""
    parameters: dict[str, str] = {}
    """Full name of each floating-point parameter that the layer holds itself → its format."""
    buffer_formats: dict[str, str] = {}
    """Full name of each floating-point buffer that the layer holds itself → its format."""
    n_parameters: int = 0
    ruled: bool = False
    """Whether a layer rule reaches it."""

    @property
    def is_layer(self) -> bool:
        """Whether it computes or stores something itself; a mere container does not."""
        return self.family is not None or bool(self.parameters) or bool(self.buffer_formats) or self.ruled


class Plan(BaseModel):
    """The policy resolved against one model, as data: printed, saved, compared with what is observed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    policy: PrecisionPolicy
    device: str
    rows: tuple[PlanRow, ...]
    notes: tuple[dict[str, Any], ...] = ()
    """Findings that did not stop it (emulation), as data."""

    def row(self, path: str) -> PlanRow:
        """The row of a layer.

        Raises:
            KeyError: the model had no such layer.
        """
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(path)

    def layers(self) -> list[PlanRow]:
        """The rows of layers that compute or store something themselves."""
        return [row for row in self.rows if row.is_layer]

    def parameters(self) -> dict[str, str]:
        """Full name of every floating-point parameter → its format."""
        return {name: dtype for row in self.rows for name, dtype in row.parameters.items()}

    def buffers(self) -> dict[str, str]:
        """Full name of every floating-point buffer → its format."""
        return {name: dtype for row in self.rows for name, dtype in row.buffer_formats.items()}

    def brief(self) -> str:
        """The plan in a line: policy, layers by compute format, exceptions, parameters."""
        layers = self.layers()
        counts = Counter(row.compute for row in layers)
        ways = ", ".join(f"{n} in {name}" for name, n in counts.most_common())
        n_parameters = sum(row.n_parameters for row in self.rows)
        return (
            f"{self.policy.label} on {self.device}: {len(layers)} layers ({ways}); "
            f"{n_parameters:,} parameters; loss in {self.policy.loss}; optimizer state in {self.policy.state}"
        )

    def as_markdown(self) -> str:
        """A table of the layers, for TensorBoard and reports."""
        lines = [
            "| layer | type | param | compute | output | parameters | why |",
            "|---|---|---|---|---|---:|---|",
        ]
        for row in self.layers():
            param = row.param if row.parameters else "–"
            lines.append(
                f"| `{row.path or '(model)'}` | {row.type} | {param} | {row.compute} | {row.output} "
                f"| {row.n_parameters:,} | {row.reasons['compute']} |"
            )
        return "\n".join(lines)


def row_around(rows: Mapping[str, PlanRow], path: str | None) -> PlanRow | None:
    """The row of the layer at a path; of the nearest around it."""
    while path is not None:
        if path in rows:
            return rows[path]
        if not path:
            return None
        path = path.rpartition(".")[0]
    return None


def resolve(
    policy: PrecisionPolicy, layers: Sequence[LayerInfo], capability: DeviceCapability | None = None
) -> tuple[Plan, list[Finding]]:
    """Resolve a policy against a model's layers and, where it is known, a device.

    A rule reaches the layer that it matches and everything inside it; nearer rules go before farther ones.

    Returns:
        The plan, and findings that do not stop it (formats that run by emulation).

    Raises:
        PlanError: a rule matches nothing (L201), two rules clash (L202), tied parameters are given
            different formats (L203), a layer is to compute wider than it stores (L204).
        HardwareError: the device cannot run it (H701).
    """
    _check_rules(policy, layers)
    own: dict[str, dict[str, tuple[str, str]]] = {}
    rows: list[PlanRow] = []
    problems: list[Finding] = []
    homes: dict[str, PlanRow] = {}
    for layer in layers:
        matched = [(key, rule) for key, rule in policy.layers.items() if matches(key, layer)]
        settings = {**_inherited(layer.path, own), **_merge(layer, matched, problems)}
        own[layer.path] = settings
        row = _row(policy, layer, settings)
        if is_wider(row.compute, row.param) and row.parameters and row.family not in _ISLAND_FAMILIES:
            problems.append(
                finding(
                    "L204",
                    "A layer cannot compute wider than it stores: its weights are rounded already",
                    place=Place(module=layer.path),
                    expected=f"param {row.compute} or wider",
                    received=f"param {row.param}, compute {row.compute}",
                    remedy=f"Say both in the rule: {{param: {row.compute}, compute: {row.compute}}}.",
                )
            )
        for role, tensors in (("param", layer.parameters), ("buffers", layer.buffers)):
            for tensor in tensors:
                first = homes.setdefault(tensor.same_as or tensor.name, row)
                wanted, given = getattr(first, role), getattr(row, role)
                if _is_float(tensor.dtype) and wanted != given:
                    problems.append(
                        finding(
                            "L203",
                            f"'{tensor.name}' is tied to '{tensor.same_as}' and cannot be stored twice",
                            place=Place(module=layer.path),
                            expected=f"{role} {wanted}, as in layer '{first.path}'",
                            received=f"{role} {given}",
                        )
                    )
        rows.append(row)
    if problems:
        raise PlanError(problems)
    notes: list[Finding] = []
    if capability is not None:
        needs = [
            (r.family, r.compute, r.path) for r in rows if r.family is not None and r.family != "embedding"
        ]
        notes = judge(policy, needs, capability)
    device = capability.device if capability else "any device"
    plan = Plan(policy=policy, device=device, rows=tuple(rows), notes=tuple(f.as_dict() for f in notes))
    return plan, notes


_ISLAND_FAMILIES = ("softmax", "normalization")


def _check_rules(policy: PrecisionPolicy, layers: Sequence[LayerInfo]) -> None:
    problems = []
    for key in policy.layers:
        if not any(matches(key, layer) for layer in layers):
            near = near_misses(key, layers)
            hint = f"Did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
            problems.append(
                finding(
                    "L201",
                    f"The layer rule '{key}' matches nothing in the model",
                    place=Place(key=f"precision.layers.{key}"),
                    expected="a glob on module paths, or type:<class name>",
                    received=repr(key),
                    remedy=hint + "`castiron train CONFIG --dry-run` prints the plan.",
                )
            )
    if problems:
        raise PlanError(problems)


def _inherited(path: str, own: dict[str, dict[str, tuple[str, str]]]) -> dict[str, tuple[str, str]]:
    """Role → (format, reason) of the nearest layer around this one; all of it flows down."""
    while path:
        path = path.rpartition(".")[0]
        if path in own:
            return own[path]
    return {}


def _merge(
    layer: LayerInfo, matched: list[tuple[str, LayerRule]], problems: list[Finding]
) -> dict[str, tuple[str, str]]:
    """Role → (format, reason) of the rules that match a layer itself; clashes are added to `problems`."""
    settings: dict[str, tuple[str, str]] = {}
    said_by: dict[str, str] = {}
    for key, rule in matched:
        compute = rule.compute or rule.param
        output = rule.output or ("float32" if compute == "tf32" else compute)
        for role, name in zip(_ROLES, (rule.param, compute, output, rule.buffers), strict=True):
            if name is None:
                continue
            if role in settings and settings[role][0] != name:
                problems.append(
                    finding(
                        "L202",
                        f"Layer rules '{said_by[role]}' and '{key}' clash",
                        place=Place(key=f"precision.layers.{key}", module=layer.path),
                        expected=f"one format for {role}",
                        received=f"{settings[role][0]} ('{said_by[role]}') and {name} ('{key}')",
                    )
                )
            settings[role], said_by[role] = (name, f"rule '{key}'"), key
    return settings


def _row(policy: PrecisionPolicy, layer: LayerInfo, settings: dict[str, tuple[str, str]]) -> PlanRow:
    source = f"preset {policy.preset_name}" if policy.preset_name else "policy"
    chosen = {role: (str(getattr(policy, role)), source) for role in _ROLES}
    chosen |= settings
    if "compute" not in settings and layer.family is not None:
        compute = compute_of(policy, layer.family)
        if compute != policy.compute:
            chosen["compute"] = (compute, f"island: {layer.family}")
    param = chosen["param"][0]
    if layer.family == "embedding":
        chosen["compute"] = (param, "a lookup: nothing is computed")
    if layer.family == "softmax" and "output" not in settings:
        # What was kept wide is not rounded right after: log-probabilities go into a loss.
        chosen["output"] = (chosen["compute"][0], "island: softmax")
    buffers = chosen["buffers"][0]
    return PlanRow(
        path=layer.path,
        type=layer.type,
        family=layer.family,
        **{role: name for role, (name, _) in chosen.items()},
        reasons={role: why for role, (_, why) in chosen.items()},
        parameters={t.name: param for t in layer.parameters if _is_float(t.dtype)},
        buffer_formats={t.name: buffers for t in layer.buffers if _is_float(t.dtype)},
        n_parameters=sum(t.size for t in layer.parameters if t.same_as is None),
        ruled=bool(settings),
    )


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
