"""Samples, tasks, scoring, search records and offline assets."""

import router  # noqa: F401  before torch: how its threads wait
