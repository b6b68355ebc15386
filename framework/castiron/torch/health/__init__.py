"""Numerical health on the device: what `castiron.health` defines, measured while a model trains."""
