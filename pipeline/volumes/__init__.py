"""Whole heads in 3-D: three planes become one map, and its pieces become lesions by one calibrated rule."""
