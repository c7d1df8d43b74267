"""Distances between pictures: identity, perception, pixels."""
