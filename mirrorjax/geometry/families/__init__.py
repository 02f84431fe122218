"""Closed forms of R_a, one file a kind; importing this package registers them."""

from . import differences as differences, hyperbolic as hyperbolic, quadratic as quadratic, spectral as spectral
