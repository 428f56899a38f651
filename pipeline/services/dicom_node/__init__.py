"""The DICOM node: receives or fetches studies, runs them, and sends the results back."""
