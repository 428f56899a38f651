"""Sizes and places of lesions, in millimeters where the voxel size is known."""
