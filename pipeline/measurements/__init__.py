"""Sizes and places of lesions, in millimetres where the scan says how large a voxel is."""
