"""Measures each stage, and both together, on labeled scans."""
