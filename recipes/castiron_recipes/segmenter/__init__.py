"""Segmenter: a small U-Net whose convolution blocks declare their shapes."""

from castiron_recipes.segmenter.recipe import Segmenter

__all__ = ["Segmenter"]
