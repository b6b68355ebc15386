"""Tables with strings, gaps and mixed cells: an MLP with embeddings, or a plain linear model."""

from castiron_recipes.tabular.recipe import Tabular

__all__ = ["Tabular"]
