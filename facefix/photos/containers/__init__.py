"""One module per file format; they all offer what base.Container says."""
