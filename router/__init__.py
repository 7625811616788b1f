"""Chains of layers, how a frozen model runs them, and the router that chooses one per sample."""
