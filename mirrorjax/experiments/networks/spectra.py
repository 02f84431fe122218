"""Norms of products of two matrices over layers: the paper's ratio, three others, and the alignment of the factors.

The paper averages the nuclear norms and the Frobenius norms over layers, and then divides. A mean of ratios gives every
layer the same weight instead. Both are computed of whole products and of the products of single heads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...nn.spectral import Factors, Spectrum, product_spectrum

RATIOS = {
    "ratio": "ratio",
    "head_ratio": "of heads",
    "mean_ratio": "mean ratio",
    "mean_head_ratio": "of heads, mean",
}
"""The four ratios by their names in datasets, with headings of tables; the first is the paper's."""


def measures(whole: Factors, heads: Factors) -> dict[str, Float[Array, "..."]]:
    """Computes the numbers to record of products over layers.

    **Arguments:** `whole`: factors (layers, n, r), (layers, r, m); `heads`: those of single heads, with any leading
    axes.
    **Returns:** the four of `RATIOS`; `layer_ratio`, one number a layer; `alignment`, the mean over layers of
    `2 |A B|_* / (|A|_F^2 + |B|_F^2)`, which is at most 1, and 1 for balanced and aligned factors; and `frobenius`, the
    mean norm.
    """
    of_layers, of_heads = product_spectrum(*whole), product_spectrum(*heads)
    squares = sum(jnp.sum(jnp.square(factor), axis=(-2, -1)) for factor in whole)
    return {
        "ratio": ratio_of_means(of_layers),
        "head_ratio": ratio_of_means(of_heads),
        "mean_ratio": jnp.mean(of_layers.ratio),
        "mean_head_ratio": jnp.mean(of_heads.ratio),
        "layer_ratio": of_layers.ratio,
        "alignment": jnp.mean(2 * of_layers.nuclear / squares),
        "frobenius": jnp.mean(of_layers.frobenius),
    }


def ratio_of_means(spectrum: Spectrum) -> Float[Array, ""]:
    """The mean nuclear norm over the mean Frobenius norm of all products; 0 where all of them are 0."""
    below = jnp.mean(spectrum.frobenius)
    return jnp.where(below == 0, 0, jnp.mean(spectrum.nuclear) / jnp.where(below == 0, 1, below))
