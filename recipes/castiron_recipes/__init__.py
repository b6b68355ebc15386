"""Recipes that ship with castiron: one folder each, to run, read and subclass."""

from castiron_recipes.lstm_sentiment import LSTMSentiment
from castiron_recipes.tabular import Tabular

__all__ = ["LSTMSentiment", "Tabular"]
