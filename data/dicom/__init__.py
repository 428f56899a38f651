"""DICOM: series in (reader, series, study), segmentations out (seg)."""
