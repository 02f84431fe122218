"""Experiments that train networks; read when they run."""
