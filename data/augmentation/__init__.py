"""Changes to prepared slices: augmentation, transplants, blanked heads, and pictures that are not brains."""
