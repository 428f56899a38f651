"""The two stages as one call, and what is around it: measurements, outputs, batches, evaluation, the command line."""
