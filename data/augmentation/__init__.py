"""What training does to slices."""
