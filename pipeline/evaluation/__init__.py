"""Honest figures for each stage and for both together, on labelled scans."""
