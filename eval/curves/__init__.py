"""Accuracy against depth on dense tables."""
