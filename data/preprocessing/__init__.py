"""From a slice to the network input, and the exact way back."""
