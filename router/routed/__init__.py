"""A router and its base model as one model: loaded, run, saved and published."""

from router.routed.model import RoutedModel

__all__ = ["RoutedModel"]
