"""Experiments that train networks; they need the extra `nn`."""
