"""Spectra of products of two matrices from their factors, which show the bias moving from Frobenius to nuclear.

With `A = Q_A R_A` and `B^T = Q_B R_B` the product is `A B = Q_A (R_A R_B^T) Q_B^T`, and its nonzero singular values are
those of the r x r core `R_A R_B^T`. So neither W_K^T W_Q of a head nor the LoRA product is formed. QR and SVD are
backward stable: each value is right to a few roundings of `|A| |B|` (Gram matrices would lose half of the digits).
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..checks import as_count

Values = Float[Array, "*batch r"]
Factors = tuple[Float[Array, "..."], Float[Array, "..."]]  # (.., n, r) and (.., r, m)


class Spectrum(eqx.Module):
    """Singular values s of matrices, largest first, with norms and ranks; leading axes (layers, heads) are kept.

    - `ratio`: `|X|_* / |X|_F`, nuclear over Frobenius, in 1 .. sqrt(rank); the ratio falls when the bias turns nuclear.
    - `effective_rank`: `exp(-sum p log p)` with `p = s / sum s` (Roy and Vetterli 2007), in 1 .. rank.
    - `stable_rank`: `|X|_F^2 / |X|_2^2`, in 1 .. rank.

    All three are 0 for the zero matrix (a LoRA product before training), and do not depend on the scale of others. They
    are not differentiable: a gradient raises `ValueError`.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Figs. 4, 14 to 16 for the ratio; Roy and Vetterli, The effective
    rank, EUSIPCO 2007; Rudelson and Vershynin (2007) for the stable rank.
    """

    values: Values

    @property
    def nuclear(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.values, axis=-1)

    @property
    def frobenius(self) -> Float[Array, "*batch"]:
        return self.values[..., 0] * jnp.sqrt(jnp.sum(self._relative**2, axis=-1))

    @property
    def ratio(self) -> Float[Array, "*batch"]:
        s = self._relative
        return _divide(jnp.sum(s, axis=-1), jnp.sqrt(jnp.sum(s**2, axis=-1)))

    @property
    def effective_rank(self) -> Float[Array, "*batch"]:
        s = self._relative
        p = _divide(s, jnp.sum(s, axis=-1, keepdims=True))
        entropy = -jnp.sum(p * jnp.log(jnp.where(p == 0, 1, p)), axis=-1)
        return jnp.where(self.values[..., 0] == 0, 0, jnp.exp(entropy))

    @property
    def stable_rank(self) -> Float[Array, "*batch"]:
        return jnp.sum(self._relative**2, axis=-1)

    @property
    def _relative(self) -> Values:
        """`s / s_1`: squares of these neither overflow nor vanish."""
        return _divide(self.values, self.values[..., :1])

    def summary(self) -> dict[str, Float[Array, "*batch"]]:
        """Returns the numbers to log: `ratio`, `effective_rank`, `stable_rank`, `nuclear`, `frobenius`."""
        names = ("ratio", "effective_rank", "stable_rank", "nuclear", "frobenius")
        return {name: getattr(self, name) for name in names}


def _divide(above: Float[Array, "..."], below: Float[Array, "..."]) -> Float[Array, "..."]:
    """Divides; the quotient is 0 where `below` is 0."""
    shape = jnp.broadcast_shapes(above.shape, below.shape)
    below = jnp.broadcast_to(below, shape)
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))  # NaN stays NaN


@jax.custom_jvp
def _core_values(a: Float[Array, "*batch n r"], b: Float[Array, "*batch r m"]) -> Float[Array, "*batch k"]:
    left = jnp.linalg.qr(a, mode="r")
    right = jnp.linalg.qr(jnp.swapaxes(b, -1, -2), mode="r")
    return jnp.linalg.svd(left @ jnp.swapaxes(right, -1, -2), compute_uv=False)


@_core_values.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "the spectrum of a product is not differentiable here: derivatives through QR are wrong at deficient rank. "
        "Track it outside of the loss; to penalize a nuclear norm, use weight decay on the factors"
    )


def product_spectrum(a: Float[Array, "..."], b: Float[Array, "..."]) -> Spectrum:
    """Computes the singular values of `a @ b` without forming the product.

    **Arguments:** `a` (.., n, r), `b` (.., r, m): the factors, e.g. LoRA's A and B; leading axes are a batch. Factors
    in less than float32 are converted to float32.
    **Returns:** a `Spectrum` with min(n, r, m) values.
    **Raises:** `ValueError` for factors that do not fit. Non-finite factors give NaN.
    """
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"the factors of a product have shapes (.., n, r) and (.., r, m), got {a.shape} and {b.shape}")
    dtype = max(a.dtype, b.dtype, jnp.dtype(jnp.float32), key=lambda dtype: jnp.finfo(dtype).bits)
    return Spectrum(_core_values(a.astype(dtype), b.astype(dtype)))


def attention_factors(key: Float[Array, "..."], query: Float[Array, "..."], heads: int) -> Factors:
    """`W_K, W_Q^T` of each head: the factors of the matrix in attention's scores, `x W_K W_Q^T x'^T`.

    The paper writes this matrix as `W_K^T W_Q`, with the weights on the left; Flax keeps them on the right.

    **Arguments:** `key`, `query` (.., d, heads * r): kernels; `heads`: how many share the last axis, head by head.
    **Returns:** factors (.., heads, d, r), (.., heads, r, d) for `product_spectrum`.
    **Raises:** `ValueError` for shapes that differ or do not divide into heads.
    """
    if key.shape != query.shape or key.ndim < 2 or key.shape[-1] % heads:
        raise ValueError(f"key and query have shapes (.., d, heads * r), got {key.shape}, {query.shape}, heads={heads}")
    split = (*key.shape[:-1], heads, key.shape[-1] // heads)
    per_head = [jnp.moveaxis(kernel.reshape(split), -2, -3) for kernel in (key, query)]
    return per_head[0], jnp.swapaxes(per_head[1], -1, -2)


class SpectralTracker(eqx.Module):
    """Computes the spectra of named products of a model, every so many steps.

    **Arguments:** `products`: name -> function of the parameters that returns the two factors, for instance
    `lambda weights: split.factors(weights)["attention/kernel"]` for LoRA's (A, B), or a function that returns
    `attention_factors`; `every`: how many steps lie between two measurements, >= 1.
    **Raises:** `ValueError` for `every` below 1, or no products.

    In a loop in Python, `tracker.due(step)` is True at the steps to measure, and `tracker(params)`, which is compiled,
    returns a dictionary of `Spectrum`s. In a compiled loop, `tracker.at(step, params)` computes the spectra at those
    steps and returns NaN at others (under `jax.vmap` over steps it computes all of them). On a CPU the QRs run in
    OpenBLAS, whose threads wait for each other on a busy machine: set `OPENBLAS_NUM_THREADS=1` before starting.
    """

    products: tuple[tuple[str, Callable[[PyTree], Factors]], ...] = eqx.field(static=True)  # static: functions
    every: int = eqx.field(static=True, default=1)  # static: a Python loop counts with it

    def __init__(self, products: Mapping[str, Callable[[PyTree], Factors]], every: int = 1):
        if not products:
            raise ValueError("a tracker needs at least one product, name -> function of the parameters")
        self.products, self.every = tuple(products.items()), as_count(every, "every")

    def due(self, step: int) -> bool:
        """True if the spectra are to be measured after this step, as after step 0."""
        return step % self.every == 0

    @eqx.filter_jit
    def __call__(self, params: PyTree) -> dict[str, Spectrum]:
        return self.measure(params)

    def measure(self, params: PyTree) -> dict[str, Spectrum]:
        """Computes the spectra; not compiled by itself, for use inside a compiled function."""
        return {name: product_spectrum(*factors(params)) for name, factors in self.products}

    def at(self, step: Array, params: PyTree) -> dict[str, Spectrum]:
        """Computes the spectra if the step is due, and returns NaN of the same shapes if not."""
        shapes = jax.eval_shape(self.measure, params)

        def skip(_: PyTree) -> dict[str, Spectrum]:
            return jax.tree.map(lambda like: jnp.full(like.shape, jnp.nan, like.dtype), shapes)

        return jax.lax.cond(step % self.every == 0, self.measure, skip, params)
