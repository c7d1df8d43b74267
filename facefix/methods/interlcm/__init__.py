"""InterLCM (ICLR 2025, arXiv 2502.02215): the LQ face as an intermediate state of a latent consistency model."""
