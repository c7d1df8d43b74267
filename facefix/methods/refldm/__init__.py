"""ReF-LDM: reference-based latent diffusion (arXiv 2412.05043)."""
