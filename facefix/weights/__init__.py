"""Weights: the catalogue, downloads, installation, checksums."""
