"""Closed forms of R_a, one file a kind."""
