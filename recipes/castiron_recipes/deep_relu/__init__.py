"""Deep ReLU: a plain deep network, whose rounding errors add up layer by layer."""

from castiron_recipes.deep_relu.recipe import DeepReLU

__all__ = ["DeepReLU"]
