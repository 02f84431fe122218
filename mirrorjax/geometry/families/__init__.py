"""Closed forms of R_a, one file a kind; importing this package registers them."""

from . import (
    blocks as blocks,
    differences as differences,
    hyperbolic as hyperbolic,
    linear as linear,
    quadratic as quadratic,
    spectral as spectral,
)
