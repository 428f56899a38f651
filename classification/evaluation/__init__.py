"""How good a classifier is: metrics, plots, scores of its explanations."""
