"""Masks: reading and writing them."""
