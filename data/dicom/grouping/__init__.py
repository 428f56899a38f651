"""Which images of DICOM files belong together: pieces of a volume, and volumes of a series."""
