"""Longer examples that use all packages; run them from the repository root with `python -m examples.NAME`."""
