"""Stage one: a ResNet-50 that decides whether a slice shows a tumor, and of which type."""
