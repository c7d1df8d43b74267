"""Restoration at 512 px by a denoiser that sees patches of latents: CacheKV with positions, and a gated guide."""
