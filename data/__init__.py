"""Samples, tasks, scoring, search records and offline assets."""
