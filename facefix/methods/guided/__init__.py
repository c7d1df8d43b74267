"""ReF-LDM with a guide: what the model that ships with facefix adds to the published method; see docs/guided.md."""
