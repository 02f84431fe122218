"""Experiments on flows: the results of the paper's theory, and some beyond the paper."""
