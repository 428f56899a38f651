"""What computes the two networks: PyTorch, or OpenVINO where there is no accelerator."""
