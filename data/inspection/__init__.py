"""Looks at a data set before training: its report, its faults, its division into parts."""
