"""Faces for training and evaluation: where they are, how they are degraded and augmented."""
