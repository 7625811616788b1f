"""Evaluation of policies against full depth and the search oracle; `python -m eval`."""
