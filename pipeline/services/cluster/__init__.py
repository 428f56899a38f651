"""Batches on many machines: what a worker does with scans, and who starts the workers."""
