"""Photographs on disk: finding, reading, writing, blending, and what is known about them."""
