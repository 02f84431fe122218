"""Closed forms of R_a, one file a kind; importing this package registers them."""

from . import hyperbolic as hyperbolic, levels as levels, quadratic as quadratic, spectral as spectral
