"""Recipes that ship with castiron: one folder each, to run, read and subclass."""

from castiron_recipes.lstm_sentiment import LSTMSentiment

__all__ = ["LSTMSentiment"]
