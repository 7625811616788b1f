"""Chains of layers, how a frozen model runs them, and the router that chooses one per sample."""

from router.threads import sleep_when_waiting

sleep_when_waiting()  # before torch is imported
