"""From pixels to people: detection, alignment, embeddings, quality, grouping, references."""
