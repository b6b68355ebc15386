"""The config of a run: what a YAML file and the command line may say, with every default.

Defaults are stated here and nowhere else. The string under each field is its documentation, its help and its
description in the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_jsonable_python

from castiron.data import ReadOptions
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import EnforceSection, GuardSection, HealthSection, Section

Share = Annotated[float, Field(ge=0, lt=1)]
"""A part of a whole."""

Paths = str | tuple[str, ...]
"""A path or glob, or several."""

POLICY_SECTIONS = {"audit": "enforce", "guard": "guard", "health": "health"}
"""Sections of the policy that a config states at its top level → their names within the policy."""

SHORT_FORMS = {
    ("precision",): "preset",
    ("precision", "scaling"): "kind",
    ("optimizer",): "name",
    ("optimizer", "schedule"): "name",
}
"""Mappings that may be written as one word → the key that the word stands for."""


class HoldOut(Section):
    """Rows taken out of the training data for the other splits, chosen once and for all by `seed`."""

    validation: Annotated[int, Field(ge=0)] | Share = 0
    """Rows (a whole number) or share of the rows (below 1)."""
    test: Annotated[int, Field(ge=0)] | Share = 0
    """Rows (a whole number) or share of the rows (below 1)."""
    seed: NonNegativeInt = 0
    """Seed of the choice. It does not follow the run's seed: the test rows are the same for every run."""


class DataConfig(Section):
    """Which files are read, and how they become batches."""

    train: Paths | None = None
    """Training data: a path or glob, or several. null: the recipe's embedded default."""
    validation: Paths | None = None
    """Validation data, by which models are selected. null: held out, or embedded."""
    test: Paths | None = None
    """Test data, used once, at the end. null: held out, or embedded."""
    embedded: bool = True
    """Whether the recipe's embedded data stands in where `train` is null; false: `train` must be given."""
    columns: dict[str, str | int | tuple[str | int, ...]] = {}
    """Field of the recipe's schema → column of the files: its name, or its position from 0 where there is no
    header. Several are alternatives: the one that a file has is used."""
    hold_out: HoldOut = HoldOut()
    """Rows of the training data that become validation and test data where no files are given for these."""
    read: ReadOptions = ReadOptions()
    """How the files are read."""
    batch_size: PositiveInt = 64
    """Rows in a batch, of each process where there are several."""
    bucket: bool = True
    """Put rows of similar length into one batch, where the recipe has rows of different lengths."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _names_a_file(cls, value: Paths | None) -> Paths | None:
        if value is not None and (not value or (not isinstance(value, str) and "" in value)):
            raise ValueError("expected a path, received an empty one; null means the embedded default")
        return value

    @model_validator(mode="after")
    def _splits_have_a_source(self) -> DataConfig:
        for split in ("validation", "test"):
            given, held = getattr(self, split), getattr(self.hold_out, split)
            if given is not None and held:
                raise ValueError(f"data.{split} and data.hold_out.{split} exclude each other; expected one")
            if given is not None and self.train is None:
                raise ValueError(
                    f"data.{split} is given and data.train is null; expected files for both, or for neither"
                )
        return self


class ScheduleConfig(Section):
    """How the learning rate changes over the steps of a run."""

    name: Literal["constant", "cosine", "linear", "one-cycle"] = "constant"
    """constant; cosine or linear: down to `final` at the last step; one-cycle: up by a cosine during the
    warm-up, and down by one."""
    warmup: Annotated[int, Field(ge=0)] | Share = 0
    """Steps (a whole number) or share of all steps (below 1) during which the rate rises from 0."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate of the last step, as a share of `lr`."""


class OptimizerConfig(Section):
    """How parameters are updated."""

    name: Literal["adamw", "adam", "sgd", "rmsprop", "adagrad"] = "adamw"
    """The algorithm."""
    lr: PositiveFloat = 1e-3
    """Learning rate: the largest that the schedule reaches."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay: decoupled for adamw, added to the gradient for the others."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """adamw, adam: decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of adaptive steps; must not vanish in the format of the optimizer's state."""
    momentum: Share = 0.0
    """sgd, rmsprop: momentum."""
    nesterov: bool = False
    """sgd: Nesterov momentum."""
    fused: bool = True
    """Update all parameters in one kernel, where the device and the algorithm have one."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and isinstance(value.get("schedule"), str):
            value = {**value, "schedule": {"name": value["schedule"]}}
        return value

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError(
                f"nesterov needs sgd with a momentum, received {self.name} with momentum {self.momentum:g}"
            )
        return self


class EarlyStopping(Section):
    """When to stop before the last epoch."""

    patience: PositiveInt = 3
    """Validations without improvement before training stops."""
    min_delta: NonNegativeFloat = 0.0
    """Changes up to this are no improvement."""
    monitor: str | None = None
    """Validation metric that is watched. null: `trainer.monitor`."""
    mode: Literal["min", "max"] | None = None
    """Which way is better. null: `trainer.mode`."""


class TrainerConfig(Section):
    """How long and where a run trains, and what it keeps."""

    max_epochs: PositiveInt | None = 3
    """Passes over the training data. null: `max_steps` alone decides."""
    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends. null: `max_epochs` alone decides."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are added up for one step."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest L2 norm of all gradients together; longer ones are scaled down. null: not clipped."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: cuda where there is one."""
    strategy: str = "auto"
    """How several devices train together: ddp (each has the whole model), fsdp (each has a share of it);
    auto: ddp. In TensorFlow multi-worker (each has the whole model), and auto is that."""
    devices: PositiveInt = 1
    """Number of devices on each machine, or of processes on the CPU. Each has batches of its own, of
    data.batch_size rows."""
    nodes: PositiveInt = 1
    """Number of machines; more than one are started by torchrun or srun, in TensorFlow with TF_CONFIG."""
    timeout: PositiveFloat = 1800.0
    """Seconds that one of several processes waits for the others before it gives up."""
    deterministic: bool = True
    """Use deterministic kernels only: the same run twice gives the same losses."""
    compile: bool = False
    """Compile the model (torch.compile)."""
    threads: PositiveInt | None = None
    """Threads of the CPU's kernels. null: the framework's default."""
    monitor: str = "loss"
    """Validation metric by which the best checkpoint is chosen."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of `monitor` is better."""
    early_stopping: EarlyStopping | None = None
    """Stop when `monitor` improves no more. null: train to the end."""
    validate_every: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 1.0
    """Validate after so many steps (a whole number) or after this share of an epoch (up to 1.0)."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints. null: one after each validation."""
    keep_last: PositiveInt = 2
    """Latest checkpoints that are kept. With two, one that a failing disk tears leaves one that is whole."""
    keep_best: PositiveInt = 1
    """Best checkpoints, by `monitor`, that are kept."""
    log_every: PositiveInt = 50
    """Steps between logged rows. Rarely is fast: to read a loss, the host waits for the device."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept as
    best. null: none."""
    limit_train: PositiveInt | None = None
    """At most so many training batches per epoch (to try things out)."""
    limit_validation: PositiveInt | None = None
    """At most so many validation batches."""
    limit_test: PositiveInt | None = None
    """At most so many test batches."""

    @model_validator(mode="after")
    def _ends(self) -> TrainerConfig:
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("trainer.max_epochs and trainer.max_steps are both null; expected an end")
        return self


class RunConfig(Section):
    """Everything that a run is made of. Unknown keys are refused, values are immutable.

    `audit`, `guard` and `health` are sections of the policy that a config states at its top level: they are
    always equal to `precision.enforce`, `precision.guard` and `precision.health`.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    recipe: str
    """What to train: a registered name (`castiron recipes list`), `my_file.py:MyRecipe` or
    `module:MyRecipe`."""
    backend: Literal["torch", "tensorflow"] = "torch"
    """The framework that trains it."""
    seed: NonNegativeInt = 17
    """Seed of initial weights, order of the data, dropout, and embedded data."""
    precision: PrecisionPolicy = PrecisionPolicy.preset("float32")
    """The precision policy: a preset, a short string, or a mapping."""
    data: DataConfig = DataConfig()
    """Which files are read, and how they become batches."""
    model: Any = {}
    """The recipe's own settings."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters are updated."""
    trainer: TrainerConfig = TrainerConfig()
    """How long and where the run trains, and what it keeps."""
    audit: EnforceSection = EnforceSection()
    """How departures from the plan are treated."""
    guard: GuardSection = GuardSection()
    """What is checked at every step."""
    health: HealthSection = HealthSection()
    """What is measured of numerical health."""

    @model_validator(mode="before")
    @classmethod
    def _declared_once(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        precision = value.get("precision")
        for section, within in POLICY_SECTIONS.items():
            if section not in value:
                continue
            if isinstance(precision, PrecisionPolicy):
                default = type(precision).model_fields[within].default
                twice = getattr(precision, within) not in (default, value[section])
            else:
                twice = isinstance(precision, Mapping) and within in precision
            if twice:
                raise PydanticCustomError(
                    "declared_twice",
                    "The section '{section}' is stated at the top level and as 'precision.{within}'",
                    {"section": section, "within": within},
                )
        return value

    @field_validator("model")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | BaseModel):
            raise PydanticCustomError("dict_type", "Input should be a valid dictionary")
        return value

    @model_validator(mode="after")
    def _sections_of_the_policy(self) -> RunConfig:
        changed = {}
        for section, within in POLICY_SECTIONS.items():
            if section in self.model_fields_set:
                changed[within] = getattr(self, section)
            else:
                # Frozen is for users; this is still construction.
                object.__setattr__(self, section, getattr(self.precision, within))
        if any(getattr(self.precision, within) != value for within, value in changed.items()):
            object.__setattr__(self, "precision", self.precision.replace(**changed))
        return self

    @field_serializer("model")
    def _plain_model(self, value: Any) -> Any:
        return to_jsonable_python(value, by_alias=True, inf_nan_mode="constants")

    def resolved(self) -> dict[str, Any]:
        """The config with every default written out, JSON-ready; it validates back to an equal config."""
        tree = self.model_dump(mode="json", by_alias=True)
        for within in POLICY_SECTIONS.values():
            del tree["precision"][within]
        return tree
