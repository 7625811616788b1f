"""Offline assets: models and data that wheels on PyPI carry."""
