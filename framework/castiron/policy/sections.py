"""The parts of a policy: layer rules, islands, matmul, scaling, updates, casts, guard, health, audit.

The string under each field is its documentation, its help and its description in the JSON Schema.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from castiron.formats import ALIASES, ComputeName, FloatName, number_format

WideName = Literal["float64", "float32"]


@dataclass(frozen=True)
class _AnyName:
    """A format under any of its names (bf16, torch.float32), which is kept under castiron's own."""

    formats: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.canonical, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [*self.formats, *self._short_names()]}

    def canonical(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return number_format(value).name
        except ValueError:
            near = difflib.get_close_matches(value, self.formats, n=1)
            near = near or difflib.get_close_matches(value, self._short_names(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            expected = ", ".join(self.formats)
            raise ValueError(f"expected a number format ({expected}), received {value!r}.{hint}") from None

    def _short_names(self) -> list[str]:
        return [short for short, name in ALIASES.items() if name in self.formats]


StoredFormat = Annotated[FloatName, _AnyName(get_args(FloatName))]
ComputeFormat = Annotated[ComputeName, _AnyName(get_args(ComputeName))]
WideFormat = Annotated[WideName, _AnyName(get_args(WideName))]


class Section(BaseModel):
    """Base of every part of a policy: immutable, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class LayerRule(Section):
    """Number formats of the layers that a rule matches; what is left out (null) stays as the policy says."""

    param: StoredFormat | None = None
    """What the layer stores its parameters in."""
    compute: ComputeFormat | None = None
    """What it multiplies in. Follows `param` where that is given, else the policy."""
    output: StoredFormat | None = None
    """What it hands on. Follows `compute` where that is given, else the policy."""
    buffers: StoredFormat | None = None
    """What it keeps its floating-point buffers in (running statistics)."""

    @model_validator(mode="after")
    def _says_something(self) -> LayerRule:
        if not (self.param or self.compute or self.output or self.buffers):
            raise ValueError("a layer rule must set at least one of param, compute, output, buffers")
        return self


class Islands(Section):
    """Operations kept wide inside a narrower compute format; null leaves a family to the compute format.

    An island computes in the wider of its format here and the format of its input.
    """

    softmax: WideFormat | None = "float32"
    """softmax, log_softmax, softmin, logsumexp, and the softmax inside attention."""
    normalization: WideFormat | None = "float32"
    """Batch, layer, group, instance and RMS normalisation; vector norms, variance, standard deviation."""
    reductions: WideFormat | None = "float32"
    """sum, mean, prod, cumulative sums and products."""
    exponentials: WideFormat | None = "float32"
    """exp, log, pow, reciprocal, rsqrt and their relatives, trigonometric inverses."""


class MatmulSection(Section):
    """Switches of the matrix-product kernels; each is set explicitly, on or off, for the run."""

    tf32: bool = False
    """Round float32 operands to tf32 in matrix products, convolutions and recurrent layers (CUDA; oneDNN)."""
    reduced_precision_reduction: bool = False
    """Let float16 and bfloat16 matrix products sum partial results in the narrow format."""


class NoScaling(Section):
    """The loss is not scaled."""

    kind: Literal["none"] = "none"
    """No scaling."""


class StaticScaling(Section):
    """The loss is multiplied by one constant, and gradients are divided by it."""

    kind: Literal["static"] = "static"
    """One constant factor."""
    scale: PositiveFloat = 2.0**12
    """The factor. A power of two changes no mantissa bit."""


class DynamicScaling(Section):
    """The scale grows while gradients stay finite and backs off when they overflow, within bounds."""

    kind: Literal["dynamic"] = "dynamic"
    """A factor that follows the gradients."""
    initial: PositiveFloat = 2.0**16
    """The scale of the first step."""
    min: PositiveFloat = 1.0
    """The floor: the scale never falls below it."""
    max: PositiveFloat = 2.0**24
    """The ceiling: the scale never grows above it."""
    growth: Annotated[float, Field(gt=1)] = 2.0
    """Factor of growth after `interval` finite steps in a row."""
    backoff: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor after an overflow."""
    interval: PositiveInt = 2000
    """Finite steps in a row before the scale grows."""
    patience: PositiveInt = 20
    """Overflows in a row at the floor before it is reported."""

    @model_validator(mode="after")
    def _ordered(self) -> DynamicScaling:
        if not self.min <= self.initial <= self.max:
            raise ValueError(
                f"expected min <= initial <= max, received {self.min:g}, {self.initial:g}, {self.max:g}"
            )
        return self


@dataclass(frozen=True)
class _OrKind:
    """A scaling section may be stated as its kind alone: `scaling: dynamic`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.section, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"enum": ["none", "static", "dynamic"]}, handler(schema)]}

    @staticmethod
    def section(value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


Scaling = Annotated[NoScaling | StaticScaling | DynamicScaling, Field(discriminator="kind"), _OrKind()]


class UpdateSection(Section):
    """How an optimizer's update reaches parameters that are narrower than float32."""

    master: WideFormat | None = None
    """Keep a wide copy of every narrower parameter, update that, and round it to the parameter."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """How an updated weight is rounded to the parameter's format. Stochastic rounding is unbiased: small
    updates are kept on average."""


class CastSection(Section):
    """What the data contract does with values that a cast changes."""

    rounding: Literal["report", "error", "ignore"] = "report"
    """A value is rounded to the nearest of the target format (most decimal text is)."""
    lossy: Literal["error", "report"] = "error"
    """A value is lost: overflow, underflow to zero, integers that change. Text that is no number is always
    an error."""
    float64_source: Literal["report", "error", "ignore"] = "report"
    """A column is stored as float64 where a narrower format is declared."""
    missing: Literal["error", "report"] = "error"
    """A value is missing where the schema declares no treatment."""


GuardTarget = Literal["loss", "gradients", "buffers", "activations", "parameters", "optimizer"]


class Budget(Section):
    """How many held steps are put up with."""

    holds: Annotated[int, Field(ge=0)] = 10
    """Held steps allowed within a window."""
    window: PositiveInt = 1000
    """Length of the window, in steps."""


class Rollback(Section):
    """How far training goes back after a bad step, and how often."""

    steps: PositiveInt = 100
    """Go back to the latest checkpoint that is at least so many steps old."""
    limit: PositiveInt = 3
    """How often in a run; the next bad step stops it."""


class LowerLearningRate(Section):
    """How much the learning rate falls after a bad step, and how often."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor on the learning rates of all parameter groups."""
    limit: PositiveInt = 3
    """How often in a run; the next bad step stops it."""


class Promote(Section):
    """How many layers go to float32 because they made a bad step."""

    limit: PositiveInt = 3
    """How many layers in a run; the next bad step of a narrow layer stops it."""


GuardResponse = Literal["raise", "hold", "rollback", "lower-lr", "promote"]


class GuardSection(Section):
    """What is checked at every step, and what happens when a step is bad."""

    every: PositiveInt = 1
    """Check every so many steps."""
    watch: tuple[GuardTarget, ...] = ("loss", "gradients", "buffers")
    """What is checked for NaN and infinity."""
    response: GuardResponse = "raise"
    """What follows a bad step, once it is held."""
    budget: Budget = Budget()
    """How many held steps are put up with before training stops, whatever the response."""
    rollback: Rollback = Rollback()
    """With `response: rollback`."""
    lower_lr: LowerLearningRate = LowerLearningRate()
    """With `response: lower-lr`."""
    promote: Promote = Promote()
    """With `response: promote`."""


class HealthSection(Section):
    """What is measured of numerical health, and how often."""

    every: PositiveInt = 100
    """Measure every so many steps."""


class EnforceSection(Section):
    """How departures from the plan are treated."""

    level: Literal["strict", "warn", "off"] = "strict"
    """strict: a finding of severity error stops before the first step. warn: findings are shown. off: nothing
    is checked."""
    select: tuple[str, ...] | None = None
    """Only these codes or families (`F3`); null: all."""
    ignore: tuple[str, ...] = ()
    """Codes or families that are not reported."""
    per_module: dict[str, tuple[str, ...]] = {}
    """Codes not reported for the modules that a glob matches."""
    severity: dict[str, Literal["error", "warning", "info"]] = {}
    """Codes or families whose findings count otherwise than the catalogue says."""
    every: PositiveInt | None = 200
    """After warm-up, look at one step in so many; null: only before the first step."""
