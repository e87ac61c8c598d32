"""How group elements move parameters: frames first, then shifts, then invisible directions."""
