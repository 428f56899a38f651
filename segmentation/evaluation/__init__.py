"""Measures masks: metrics and plots."""
