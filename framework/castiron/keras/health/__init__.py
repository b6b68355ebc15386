"""Numerical health of a training step in TensorFlow, measured in the step's own graph."""
