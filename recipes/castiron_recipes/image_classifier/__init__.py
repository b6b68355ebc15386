"""Image classifier: a small residual network with batch normalisation."""

from castiron_recipes.image_classifier.recipe import ImageClassifier

__all__ = ["ImageClassifier"]
