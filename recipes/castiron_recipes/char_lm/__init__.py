"""Character language model: a small decoder in the manner of GPT."""

from castiron_recipes.char_lm.recipe import CharLM

__all__ = ["CharLM"]
