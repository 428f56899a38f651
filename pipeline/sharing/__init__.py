"""Both stages as other projects exchange networks: MONAI bundles, Hugging Face folders, a MONAI Label app."""
