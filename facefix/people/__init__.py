"""From embeddings to people: grouping, names, corrections, references."""
