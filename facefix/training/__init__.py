"""Training: datasets, degradation, losses and the two training loops."""
