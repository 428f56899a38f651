"""Scans, their formats, preprocessing, data sets and phantoms. Knows no model."""
