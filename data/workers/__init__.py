"""Calls in worker processes, for native decoders."""
