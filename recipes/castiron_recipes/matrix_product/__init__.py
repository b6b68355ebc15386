"""Matrix product: the error of sums of products, by their length."""

from castiron_recipes.matrix_product.recipe import MatrixProduct

__all__ = ["MatrixProduct"]
