"""From a slice to the input of a network, and back to the slice."""
