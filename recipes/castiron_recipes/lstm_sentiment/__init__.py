"""LSTM sentiment classifier."""

from castiron_recipes.lstm_sentiment.recipe import LSTMSentiment

__all__ = ["LSTMSentiment"]
