"""Stores (object stores, web folders) and DICOMweb servers as places of scans and results."""
