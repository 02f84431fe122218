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
from jaxtyping import Array, Float, Int, PyTree

from ..calls import calling
from ..checks import as_count, as_float, require_kind

Values = Float[Array, "*batch r"]
Factors = tuple[Float[Array, "..."], Float[Array, "..."]]  # (.., n, r) and (.., r, m)


class Spectrum(eqx.Module):
    """Singular values s of matrices, largest first, with norms and ranks; leading axes (layers, heads) are kept.

    - `ratio`: `|X|_* / |X|_F`, nuclear over Frobenius, in 1 .. sqrt(rank); the ratio falls when the bias turns nuclear.
    - `effective_rank`: `exp(-sum p log p)` with `p = s / sum s` (Roy and Vetterli 2007), in 1 .. rank.
    - `stable_rank`: `|X|_F^2 / |X|_2^2`, in 1 .. rank.

    All three are 0 for the zero matrix (a LoRA product before training), and do not depend on the scale of others. They
    are not differentiable: a gradient raises `ValueError`.

    **Arguments:** `values`: singular values, largest first; `exponent`: whole numbers e (batch), if the singular values
    are `values * 2^e`. Where these leave the range of the precision, `values`, `nuclear` and `frobenius` are infinite
    or 0, and the three ratios are still right.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Figs. 4, 14 to 16 for the ratio; Roy and Vetterli, The effective
    rank, EUSIPCO 2007; Rudelson and Vershynin (2007) for the stable rank.
    """

    relative: Values  # s / s_1: squares of these neither overflow nor vanish
    largest: Float[Array, "*batch"]  # s_1

    def __init__(self, values: Values, exponent: Int[Array, "*batch"] | None = None):
        self.relative = _divide(values, values[..., :1])
        self.largest = values[..., 0] if exponent is None else jnp.ldexp(values[..., 0], exponent)

    @property
    def values(self) -> Values:
        s_1 = self.largest[..., None]
        return jnp.where(self.relative == 0, 0, self.relative * s_1)  # 0 also beside an infinite s_1

    @property
    def nuclear(self) -> Float[Array, "*batch"]:
        return self._scaled(jnp.sum(self.relative, axis=-1))

    @property
    def frobenius(self) -> Float[Array, "*batch"]:
        return self._scaled(jnp.sqrt(jnp.sum(self.relative**2, axis=-1)))

    @property
    def ratio(self) -> Float[Array, "*batch"]:
        s = self.relative
        return _divide(jnp.sum(s, axis=-1), jnp.sqrt(jnp.sum(s**2, axis=-1)))

    @property
    def effective_rank(self) -> Float[Array, "*batch"]:
        s = self.relative
        p = _divide(s, jnp.sum(s, axis=-1, keepdims=True))
        entropy = -jnp.sum(p * jnp.log(jnp.where(p == 0, 1, p)), axis=-1)
        return jnp.where(s[..., 0] == 0, 0, jnp.exp(entropy))

    @property
    def stable_rank(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.relative**2, axis=-1)

    def _scaled(self, norm: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The norm of X from that of `X / s_1`; 0 for the zero matrix."""
        return jnp.where(norm == 0, 0, norm * self.largest)

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

    Each factor is first divided by a power of two near its largest entry, which is exact, so that products of very
    large or very small factors have the same ratios as others.

    **Arguments:** `a` (.., n, r), `b` (.., r, m): the factors, e.g. LoRA's A and B; leading axes are a batch. Factors
    in less than float32 are converted to float32, and integers to the default float type.
    **Returns:** a `Spectrum` with min(n, r, m) values.
    **Raises:** `ValueError` for factors that do not fit, are empty or not real. Non-finite factors give NaN.
    """
    a, b = as_float(a, "a"), as_float(b, "b")
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"the factors of a product have shapes (.., n, r) and (.., r, m), got {a.shape} and {b.shape}")
    if 0 in (*a.shape[-2:], *b.shape[-2:]):
        raise ValueError(f"the factors of a product must have entries, got shapes {a.shape} and {b.shape}")
    dtype = max(a.dtype, b.dtype, jnp.dtype(jnp.float32), key=lambda dtype: jnp.finfo(dtype).bits)
    (a, of_a), (b, of_b) = _normalized(a.astype(dtype)), _normalized(b.astype(dtype))
    return Spectrum(_core_values(a, b), of_a + of_b)


def _normalized(x: Float[Array, "*batch n m"]) -> tuple[Float[Array, "*batch n m"], Int[Array, "*batch"]]:
    """Returns `2^-e x` and e, with the largest entry of each matrix in 1/2 .. 1."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=(-2, -1)))
    return jnp.ldexp(x, -exponent[..., None, None]), exponent


def attention_factors(key: Float[Array, "..."], query: Float[Array, "..."], heads: int | None = None) -> Factors:
    """`W_K, W_Q^T` of each head: the factors of the matrix in attention's scores, `x W_K W_Q^T x'^T`.

    The paper writes this matrix as `W_K^T W_Q`, with the weights on the left; Flax keeps them on the right.

    **Arguments:**

    - `key`, `query`: without `heads`, kernels (.., d, heads, r) as Flax's `nnx.MultiHeadAttention` keeps them; with
      `heads`, kernels (.., d, heads * r), whose last axis holds head after head. Leading axes, such as layers, are a
      batch.
    - `heads`: how many heads the last axis holds; `None` where heads have an axis of their own.

    **Returns:** factors (.., heads, d, r), (.., heads, r, d) for `product_spectrum`.

    **Raises:** `ValueError` for kernels whose shapes differ or do not divide into heads; without `heads` for matrices,
    and for kernels with r > d, which are more likely matrices in a stack; with `heads` for kernels whose last axis but
    one is as long, which may be of the other form: each of the two readings gives other spectra.

    Example:

        attention = nnx.MultiHeadAttention(num_heads=4, in_features=32, rngs=nnx.Rngs(0))
        nn.attention_factors(attention.key.kernel[...], attention.query.kernel[...])
        nn.attention_factors(W_K, W_Q, heads=12)  # matrices (768, 768)
    """
    key, query = as_float(key, "key"), as_float(query, "query")
    heads = None if heads is None else as_count(heads, "heads")
    got = f"got {key.shape}, {query.shape}, heads={heads}"
    if key.shape != query.shape or key.ndim < 2:
        raise ValueError(f"key and query have one shape, (.., d, heads, r) or with heads (.., d, heads * r), {got}")
    if heads is None:
        if key.ndim < 3:
            raise ValueError(f"matrices do not tell how many heads they hold, {got}: give heads")
        if key.shape[-1] > key.shape[-3]:
            raise ValueError(
                f"kernels (.., d, heads, r) have r <= d, {got}, as a stack of matrices (.., d, heads * r) has: give "
                "heads for these"
            )
        joined_key, joined_query = (kernel.reshape(*kernel.shape[:-2], -1) for kernel in (key, query))
        return split_heads(joined_key, joined_query, key.shape[-2])
    if key.ndim > 2 and key.shape[-2] == heads:
        raise ValueError(
            f"kernels of shape {key.shape} have an axis as long as heads={heads}: for (.., d, heads, r), as in Flax's "
            "MultiHeadAttention, leave heads out; for (.., d, heads * r) map over the leading axes with jax.vmap"
        )
    if key.shape[-1] % heads:
        raise ValueError(f"the last axis of key and query, (.., d, heads * r), must divide into heads, {got}")
    return split_heads(key, query, heads)


def split_heads(key: Float[Array, "*batch d w"], query: Float[Array, "*batch d w"], heads: int) -> Factors:
    """The factors that `attention_factors` returns, of kernels (.., d, heads * r)."""
    split = (*key.shape[:-1], heads, key.shape[-1] // heads)
    per_head = [jnp.moveaxis(kernel.reshape(split), -2, -3) for kernel in (key, query)]
    return per_head[0], jnp.swapaxes(per_head[1], -1, -2)


class SpectralTracker(eqx.Module):
    """Computes the spectra of named products of a model, every so many steps.

    **Arguments:** `products`: name -> function of the parameters that returns the two factors, for instance
    `lambda weights: split.factors(weights)["attention/kernel"]` for LoRA's (A, B), or a function that returns
    `attention_factors`; `every`: how many steps lie between two measurements, >= 1.
    **Raises:** `ValueError` for `every` below 1, or no products; when it measures, for a product that does not return
    two factors.

    In a loop in Python, `tracker.due(step)` is True at the steps to measure, and `tracker(params)`, which is compiled,
    returns a dictionary of `Spectrum`s. In a compiled loop, `tracker.at(step, params)` computes the spectra at those
    steps and returns NaN at others (under `jax.vmap` over steps it computes all of them). On a CPU the QRs run in
    OpenBLAS, whose threads wait for each other on a busy machine: set `OPENBLAS_NUM_THREADS=1` before starting.
    """

    products: tuple[tuple[str, Callable[[PyTree], Factors]], ...] = eqx.field(static=True)  # static: functions
    every: int = eqx.field(static=True, default=1)  # static: a Python loop counts with it

    def __init__(self, products: Mapping[str, Callable[[PyTree], Factors]], every: int = 1):
        require_kind(products, Mapping, "products", "a dict from name to a function of the parameters")
        if not products:
            raise ValueError("a tracker needs at least one product, name -> function of the parameters")
        for name, factors in products.items():
            if not callable(factors):
                raise ValueError(f"products[{name!r}] must be a function of the parameters, got {factors!r}")
        self.products, self.every = tuple(products.items()), as_count(every, "every")

    def due(self, step: int) -> bool:
        """True if the spectra are to be measured after this step, as after step 0."""
        return step % self.every == 0

    @eqx.filter_jit
    def __call__(self, params: PyTree) -> dict[str, Spectrum]:
        return self.measure(params)

    def measure(self, params: PyTree) -> dict[str, Spectrum]:
        """Computes the spectra; not compiled by itself, for use inside a compiled function."""
        return {name: product_spectrum(*_two_factors(name, factors, params)) for name, factors in self.products}

    def at(self, step: Array, params: PyTree) -> dict[str, Spectrum]:
        """Computes the spectra if the step is due, and returns NaN of the same shapes if not."""
        shapes = jax.eval_shape(self.measure, params)

        def skip(_: PyTree) -> dict[str, Spectrum]:
            return jax.tree.map(lambda like: jnp.full(like.shape, jnp.nan, like.dtype), shapes)

        return jax.lax.cond(step % self.every == 0, self.measure, skip, params)


def _two_factors(name: str, factors: Callable[[PyTree], Factors], params: PyTree) -> Factors:
    """Calls the function of a product. Raises `ValueError`, naming the product, unless it returns two factors."""
    with calling(f"products[{name!r}]"):
        pair = factors(params)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"products[{name!r}] must return two factors (a, b), whose product is measured; got {pair!r}")
    return pair[0], pair[1]
