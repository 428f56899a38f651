"""The two stages as one call, and everything around it: measurements, outputs, batches, evaluation, the command line."""
