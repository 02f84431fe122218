"""Experiments on flows: the paper's theory and what goes past it."""
