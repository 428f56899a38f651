"""Any file to a `Scan`: one module a format."""
