"""Networks of both stages, trained and run."""
