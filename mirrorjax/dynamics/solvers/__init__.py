"""Solvers and step-size controllers that diffrax does not have."""
