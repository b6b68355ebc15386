"""The precision policy: which number formats a run may use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from castiron.formats import is_wider, number_format, widest
from castiron.policy.presets import ALIASES, PRESETS, expand_preset
from castiron.policy.sections import (
    CastSection,
    ComputeFormat,
    EnforceSection,
    GuardSection,
    HealthSection,
    Islands,
    LayerRule,
    MatmulSection,
    NoScaling,
    Scaling,
    Section,
    StoredFormat,
    UpdateSection,
    WideFormat,
)
from castiron.policy.short_form import format_short_form, parse_short_form

ROLES = ("param", "compute", "output", "accumulate", "state", "loss", "buffers")


_LATER: dict[str, tuple[str, ...]] = {
    "guard": ("rollback", "lower_lr", "promote"),
    "health": ("what_if",),
    "enforce": ("severity", "every"),
}
"""Settings that came after the first version, by section. They count in the hash where they are set to
something else than their default, so that saved plans and manifests keep theirs."""


class PrecisionPolicy(Section):
    """Which number format each role of a training run uses, and what is enforced. Immutable and hashable.

    Built from a preset, a mapping or a short string; whatever is left out follows: `compute` follows
    `param`, `output` follows `compute`, and `accumulate`, `state`, `loss` and `buffers` are the wider of
    float32 and `param`.

    Example:
        >>> policy = PrecisionPolicy.preset("bf16-mixed", layers={"head": {"compute": "float32"}})
        >>> PrecisionPolicy.parse(str(policy)) == policy
        True
    """

    preset_name: str | None = Field(None, alias="preset")
    """The preset this policy started from; a label: two policies that differ in it alone are equal."""
    param: StoredFormat = "float32"
    """What layers store their parameters in."""
    compute: ComputeFormat = "float32"
    """What layers multiply in. Follows `param`."""
    output: StoredFormat = "float32"
    """What layers hand on. Follows `compute` (float32 for tf32, bfloat16 for float8)."""
    accumulate: WideFormat = "float32"
    """What reductions, metrics and the gradient all-reduce sum in."""
    state: StoredFormat = "float32"
    """What the optimizer keeps its moments in."""
    loss: WideFormat = "float32"
    """What the loss is taken in."""
    buffers: StoredFormat = "float32"
    """What layers keep their floating-point buffers in (running statistics)."""
    layers: dict[Annotated[str, Field(min_length=1)], LayerRule] = {}
    """Layer rules: a glob on module paths (`encoder.*`, `**.norm`) or `type:LayerNorm`, and its formats."""
    islands: Islands = Islands()
    """Operations kept wide inside a narrower compute format."""
    matmul: MatmulSection = MatmulSection()
    """Switches of the matrix-product kernels."""
    scaling: Scaling = NoScaling()
    """Loss scaling: none, static or dynamic. Required where compute is float16."""
    updates: UpdateSection = UpdateSection()
    """How updates reach parameters that are narrower than float32."""
    casts: CastSection = CastSection()
    """What the data contract does with values that a cast changes."""
    guard: GuardSection = GuardSection()
    """What is checked at every step."""
    health: HealthSection = HealthSection()
    """What is measured of numerical health."""
    enforce: EnforceSection = EnforceSection()
    """How departures from the plan are treated."""

    # --- building ----------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """A preset's name, a short string or a mapping with a preset, to a mapping with every role set."""
        if isinstance(value, str | int) and not isinstance(value, bool):
            value = parse_short_form(str(value))
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        if "preset_name" in given:
            given["preset"] = given.pop("preset_name")
        name = given.get("preset")
        if name is not None:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise ValueError(f"expected the name of a preset, received {name!r}")
            given = {**expand_preset(str(name)), **{k: v for k, v in given.items() if k != "preset"}}
        return _follow(given)

    @model_validator(mode="after")
    def _consistent(self) -> PrecisionPolicy:
        problems = []
        if self.compute == "tf32" and self.param != "float32":
            problems.append(f"compute tf32 needs param float32, received param {self.param}")
        if self.matmul.tf32 != (self.compute == "tf32"):
            problems.append(
                f"matmul.tf32 {str(self.matmul.tf32).lower()} contradicts compute {self.compute}; "
                "tf32 is declared as the compute format"
            )
        computes = {self.compute, *(r.compute for r in self.layers.values() if r.compute)}
        if "float16" in computes and isinstance(self.scaling, NoScaling):
            problems.append(
                "compute float16 needs loss scaling (its smallest gradient is 6e-08): "
                "expected scaling dynamic or static, received none"
            )
        narrow = {"float16", "float8_e4m3fn", "float8_e5m2"}
        if not isinstance(self.scaling, NoScaling) and not computes & narrow:
            problems.append(
                f"scaling {self.scaling.kind} makes no sense where nothing computes in float16 or float8: "
                f"{self.compute} has the exponent range of float32 or more; expected scaling none"
            )
        if self.param.startswith("float8"):
            problems.append(f"param {self.param}: float8 is a compute format; expected 16 bits or more")
        master = self.updates.master
        if master and not is_wider(master, self.param):
            problems.append(
                f"updates.master {master} is no wider than param {self.param}; expected null (no master copy)"
            )
        if self.updates.rounding == "stochastic" and self.param != "bfloat16":
            problems.append(
                f"updates.rounding stochastic is for bfloat16 parameters; received param {self.param}"
            )
        if self.updates.rounding == "stochastic" and master:
            problems.append("updates.rounding stochastic and updates.master exclude each other; expected one")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def preset(cls, name: str, /, **overrides: Any) -> PrecisionPolicy:
        """The policy of a preset (`castiron policy list`), with some fields said otherwise.

        Raises:
            pydantic.ValidationError: no such preset (near misses are listed), or an override is refused.
        """
        return cls.model_validate({"preset": name, **overrides})

    @classmethod
    def parse(cls, text: str) -> PrecisionPolicy:
        """The policy of a preset's name or a short string: `"p=float32,c=bfloat16,o=float32"`.

        Raises:
            pydantic.ValidationError: the text cannot be parsed, or names what does not exist.
        """
        return cls.model_validate(text)

    def replace(self, **changes: Any) -> PrecisionPolicy:
        """This policy with some fields said otherwise, validated; what followed them stays as it is."""
        return type(self).model_validate({**self.model_dump(by_alias=True), **changes})

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A preset's name, a short string, or the mapping."""
        mapping = handler.resolve_ref_schema(handler(core_schema))
        names = [*PRESETS, *ALIASES, *(int(name) for name in ALIASES if name.isdigit())]
        return {"anyOf": [{"enum": names}, {"type": "string", "pattern": "="}, mapping]}

    # --- identity ----------------------------------------------------------------------------------

    def canonical(self) -> dict[str, Any]:
        """Everything that the policy declares, JSON-ready; the label is left out."""
        return self.model_dump(mode="json", exclude={"preset_name"})

    def hash(self) -> str:
        """16 hexadecimal digits of what is declared: equal on every machine and Python version."""
        declared = self.canonical()
        defaults = PrecisionPolicy().canonical()
        for section, keys in _LATER.items():
            for key in keys:
                if declared[section].get(key) == defaults[section].get(key):
                    declared[section].pop(key, None)
        text = json.dumps(declared, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrecisionPolicy) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return int(self.hash(), 16)

    def __str__(self) -> str:
        declared = self.canonical()
        declared["layers"] = {
            glob: {role: name for role, name in rule.items() if name}
            for glob, rule in declared["layers"].items()
        }
        roles = {role: declared[role] for role in ("param", "compute", "output")}
        scaling = {**type(self.scaling)().model_dump(mode="json"), "kind": "none"}
        defaults = {**_plain(roles), "scaling": scaling}
        return format_short_form(declared, defaults)

    @property
    def label(self) -> str:
        """What to call it in one or two words: its preset, marked where it was changed."""
        if self.preset_name is None:
            return f"p={self.param},c={self.compute},o={self.output}"
        unchanged = self == PrecisionPolicy.preset(self.preset_name)
        return self.preset_name if unchanged else f"{self.preset_name} (changed)"

    @property
    def is_mixed(self) -> bool:
        """Whether layers compute in a narrower format than they store."""
        return self.compute != "tf32" and is_wider(self.param, self.compute)


def _plain(roles: dict[str, Any]) -> dict[str, Any]:
    """The fields of a policy that declares these roles and nothing else, unchecked."""
    sections = PrecisionPolicy().canonical()
    followed = _follow(dict(roles))
    return {**sections, **followed, "matmul": {**sections["matmul"], **followed.get("matmul", {})}}


def _follow(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in the roles that follow others; what does not name a format is left for validation to refuse."""

    def name(role: str, default: str) -> str:
        value = given.get(role)
        try:
            found = number_format(value) if isinstance(value, str) else None
        except ValueError:
            found = None
        return found.name if found and found.is_float else default

    param = name("param", "float32")
    wide = widest("float32", param) if param in ("float32", "float64") else "float32"
    given.setdefault("param", param)
    compute = name("compute", param)
    given.setdefault("compute", compute)
    output = "float32" if compute == "tf32" else "bfloat16" if compute.startswith("float8") else compute
    given.setdefault("output", output)
    for role in ("accumulate", "state", "loss", "buffers"):
        given.setdefault(role, wide)
    matmul = given.get("matmul", {})
    if compute == "tf32" and isinstance(matmul, Mapping):
        given["matmul"] = {"tf32": True, **matmul}
    return given
