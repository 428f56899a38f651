"""The command line `tumorlens`."""
