"""Flows over a grid of lanes."""

from .flows import sweep as sweep
