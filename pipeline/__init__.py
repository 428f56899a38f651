"""The two stages as one call, with measurements, outputs, batches, evaluation and the command line."""
