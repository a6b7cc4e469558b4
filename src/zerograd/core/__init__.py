"""The optimiser: probe (losses at theta + c z), log the scalars, apply them, replay them."""
