"""Measures a classifier: metrics, plots, scores of its explanations."""
