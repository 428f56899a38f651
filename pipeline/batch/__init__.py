"""Many scans in one call."""
