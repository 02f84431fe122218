"""The general path of R_a: being written."""

import equinox as eqx


class NumericLegendre(eqx.Module):
    def __init__(self, g, h, w0):
        raise NotImplementedError
