"""Recipes that ship with castiron: one folder each, to run, read and subclass."""
