"""Evaluation of arms against full depth and the search oracle; `python -m eval`."""

import router  # noqa: F401  before torch: how its threads wait
