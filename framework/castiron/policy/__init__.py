"""Declare: the precision policy, its presets, what hardware can run, and the plan it resolves to."""

from castiron.policy.hardware import DeviceCapability, Support, preset_outlook
from castiron.policy.modules import FAMILIES, Family, LayerInfo, TensorInfo
from castiron.policy.plan import Plan, PlanRow, resolve
from castiron.policy.policy import ROLES, PrecisionPolicy
from castiron.policy.presets import ALIASES, PRESETS, preset_name
from castiron.policy.sections import CastSection, EnforceSection, GuardSection, HealthSection

__all__ = [
    "ALIASES",
    "FAMILIES",
    "PRESETS",
    "ROLES",
    "CastSection",
    "DeviceCapability",
    "EnforceSection",
    "Family",
    "GuardSection",
    "HealthSection",
    "LayerInfo",
    "Plan",
    "PlanRow",
    "PrecisionPolicy",
    "Support",
    "TensorInfo",
    "preset_name",
    "preset_outlook",
    "resolve",
]
