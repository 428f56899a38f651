"""Scans, their formats, preprocessing, data sets, and the parts of training that both stages share. Knows no model."""
