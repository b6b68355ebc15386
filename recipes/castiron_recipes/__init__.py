"""Recipes that ship with castiron: one folder each, to run, read and subclass."""

from castiron_recipes.char_lm import CharLM
from castiron_recipes.deep_relu import DeepReLU
from castiron_recipes.image_classifier import ImageClassifier
from castiron_recipes.lstm_sentiment import LSTMSentiment
from castiron_recipes.matrix_product import MatrixProduct
from castiron_recipes.segmenter import Segmenter
from castiron_recipes.seq2seq_attention import Seq2SeqAttention
from castiron_recipes.series_forecaster import SeriesForecaster
from castiron_recipes.tabular import Tabular

__all__ = [
    "CharLM",
    "DeepReLU",
    "ImageClassifier",
    "LSTMSentiment",
    "MatrixProduct",
    "Segmenter",
    "Seq2SeqAttention",
    "SeriesForecaster",
    "Tabular",
]
