"""Evaluation of arms against full depth and the search oracle; `python -m eval`."""
