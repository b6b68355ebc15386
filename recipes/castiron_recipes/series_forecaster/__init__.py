"""Series forecaster: linear baselines (NLinear, DLinear) and an LSTM, for all columns at once."""

from castiron_recipes.series_forecaster.recipe import SeriesForecaster

__all__ = ["SeriesForecaster"]
