"""How group elements move parameters: frames first, then additive stages."""
