"""The REST service: scans come over HTTP, wait in the spool, and their results are fetched."""
