"""read_bias(): the (mu, a) of each coordinate that a training run has accumulated, whatever the optimizer was.

For families with two weights a coordinate, `(mu_i, a_i) -> (weights of coordinate i)` is a bijection onto the part of
the plane that flows reach from w0. So any weights are psi(mu, a) for one mu_i and one a_i a coordinate. Each family's
Legendre class has the formula, `bias_at`; other differences `x = g_u(u) - g_v(v)` are read by quadrature here.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import refuted
from ..problem import AbstractDifference, AbstractRegularizer, AbstractReparameterization
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import RESULTS, select
from .bias import Bias, Move, Values, bias_of, finite_status, from_times
from .points import as_finite_weights, require_pair
from .registry import closed_form

# Gauss's rule on each of 8 panels. Half as many panels err 2^32 times as much on a smooth integrand, so where both
# rules agree to half of the digits, the finer one has them all.
_NODES, _PANELS = 16, 8


def read_bias(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights, w: Weights) -> Bias:
    """The unique `(mu_i, a_i)` of each coordinate with `psi(mu_i, a_i)` = the weights of coordinate i.

    The weights w may come from any optimizer with any step size. Along the flow every a_i is `-int alpha`, and mu lies
    in range(Z^T) if f depends on x through Zx. For other optimizers a_i tells the R_{a_i} whose mirror map gives mu_i,
    and the distance of mu from range(Z^T) tells how far x is from a minimum of `sum_i R_{a_i}(x_i)` on its own level
    of Zx. For x = m w and h = c (m^2 + w^2), with `u = (m + w)/sqrt2`, `v = (m - w)/sqrt2`:

        4 c a_i = log|u v / (u0 v0)|,    2 mu_i = log|u / u0| - log|v / v0|

    It works under `jax.jit`, `jax.vmap` and `jax.grad`. Both numbers carry the rounding of the weights: where m and w
    agree to k digits, v has lost k digits. For power, log and exp differences, weights far along mu may have an
    a_i at which psi(0, a_i) does not exist; the methods of R refuse such an a_i.

    **Arguments:**

    - `g`: a family with two weights a coordinate: `Hadamard()`, `PowerDifference(k)`, `LogDifference()`,
      `ExpDifference()`, `Separable(g_u, g_v)`.
    - `h`: the regularizer that the run was trained with: `WeightDecay(c)` or `Compatible(g, c)`, c != 0. Its strength
      plays no part. `PowerDifference(k)` is read under both.
    - `w0`, `w`: the weights before and after training, of the same structure and shapes.

    **Returns:** a `Bias`: mu, a and a status for each coordinate. The status is `other_orthant` where a weight changed
    its sign against w0 (for x = m w: u or v), `balanced` where w0 or w lies on the boundary (|m| = |w|), `diverged`
    where w is not finite, `invalid_weights` where R_a does not exist at w0, `not_converged` where the quadrature of a
    `Separable` fails. Half-precision weights are read in float32.

    **Raises:** `ValueError` for a g without two weights a coordinate, an h without R_a for it or of scale 0, a w0 that
    is not finite or that g refuses, and a w that is not built like w0.

    Example:

        g, h = mj.Hadamard(), mj.WeightDecay()
        bias = mj.read_bias(g, h, (jnp.ones(3), jnp.zeros(3)), (jnp.full(3, 0.5), jnp.full(3, 0.1)))
        bias.a  # log(0.24) / 4 = -0.357 in each coordinate

    Source: none published for the reading; Pesme, Pillaud-Vivien, Flammarion (2021) and Even, Pesme, Gunasekar,
    Flammarion (arXiv 2302.08982) for what noise and steps do to x = u^2 - v^2.
    """
    require_pair(g, h)
    w0 = as_finite_weights(w0)
    g.check(w0)
    h.check(w0)
    w = as_weights(w)
    _require_alike(w, w0)
    _require_two_weights(g, w0)
    _require_nonzero(g, h)
    # Compiled, so that w0 is traced: entries of w0 without R_a then get a status instead of an error.
    w0, w = _widened(w0, w)
    return eqx.filter_jit(_read)(g.capture(w0), h.capture(w0), w0, w)


def _read(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights, w: Weights) -> Bias:
    R = closed_form(g, h, w0)
    if R is not None:
        return R.bias_at(w)
    scale = h.compatible_scale(g)
    if scale is None or not isinstance(g, AbstractDifference):
        raise ValueError(
            f"read_bias has no formula for {type(g).__name__} with {type(h).__name__}; use a family with two weights a "
            "coordinate, such as Hadamard() or PowerDifference(k), and the regularizer WeightDecay() or Compatible(g)"
        )
    return _by_quadrature(g, scale, w0, w)


def _by_quadrature(g: AbstractDifference, scale: Float[Array, ""], w0: Weights, w: Weights) -> Bias:
    """The times `int du / g_u'(u)` and `int dv / g_v'(v)` from the start to the end, by Gauss's rule."""
    moves = (w0[0], w[0]), (w0[1], w[1])
    status = finite_status(*moves)
    agreed = []

    def read(plus: Move, minus: Move) -> tuple[Values, Values]:
        fine, coarse = (
            (_time(g.plus, *plus, panels), _time(g.minus, *minus, panels)) for panels in (_PANELS, _PANELS // 2)
        )
        half = float(jnp.finfo(fine[0].dtype).eps) ** 0.5
        agreed.extend(jnp.abs(one - other) <= half * jnp.abs(one) for one, other in zip(fine, coarse, strict=True))
        return from_times(*fine, scale)

    bias = bias_of(moves, read, status)
    good = agreed[0] & agreed[1]
    result = select(good | (bias.result != RESULTS.successful), bias.result, RESULTS.not_converged)
    return Bias(jnp.where(good, bias.mu, jnp.nan), jnp.where(good, bias.a, jnp.nan), result)


def _time(fn: Callable, start: Values, end: Values, panels: int) -> Values:
    """`int_start^end ds / fn'(s)`."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    shares = ((np.arange(panels)[:, None] + (points + 1) / 2) / panels).ravel()
    way = end - start

    def pace(share: Float[Array, ""]) -> Values:
        at = start + share * way
        return 1 / jax.jvp(fn, (at,), (jnp.ones_like(at),))[1]

    paces = jax.vmap(pace)(jnp.asarray(shares, way.dtype))
    return way * jnp.tensordot(jnp.asarray(np.tile(weights / (2 * panels), panels), way.dtype), paces, 1)


def _require_alike(w: Weights, w0: Weights) -> None:
    """Raises `ValueError` unless the trained weights have the structure and the shapes of w0."""
    built, like = jax.tree.structure(w), jax.tree.structure(w0)
    if built != like:
        raise ValueError(f"w must be built like w0, {like}, got {built}; restore a checkpoint into the same structure")
    shapes, wanted = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (w, w0))
    if shapes != wanted:
        raise ValueError(
            f"w must have the shapes {', '.join(map(str, wanted))} of w0, got {', '.join(map(str, shapes))}; use "
            "jax.vmap for several runs"
        )
    for leaf in jax.tree.leaves(w):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"w must hold floating-point weights like w0, got dtype {leaf.dtype}")


def _widened(*trees: Weights) -> tuple[Weights, ...]:
    """The weights in the widest of their dtypes, and at least in float32, which holds half precision exactly."""
    dtypes = [jnp.dtype(jnp.float32), *(leaf.dtype for leaf in jax.tree.leaves(trees))]
    dtype = max(dtypes, key=lambda dtype: jnp.finfo(dtype).nmant)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), trees)


def _require_two_weights(g: AbstractReparameterization, w0: Weights) -> None:
    name, count = type(g).__name__, len(jax.tree.leaves(w0))
    if not g.elementwise:
        raise ValueError(
            f"read_bias needs a family that acts coordinate by coordinate, which {name} does not: a matrix family has "
            "no a for each entry; compare spectra with mirrorjax.nn.product_spectrum, or give the family by its own "
            "class, such as Hadamard()"
        )
    if count == 1:
        raise ValueError(
            f"{name} has one weight a coordinate, which cannot tell mu from a: every a fits; give the a that was "
            "spent to legendre(g, h, w0).mirror_map(g(w), a), or use x = m w (Hadamard)"
        )
    if count > 2:
        raise ValueError(
            f"read_bias needs two weights a coordinate, and {name} has {count}: the weights that (mu, a) reach are a "
            "surface, which training leaves; look at log|gap / gap0| / (4c) of the gaps w_i^2 - w_j^2 instead, which "
            "is a for each pair of factors while the weights are on it"
        )


def _require_nonzero(g: AbstractReparameterization, h: AbstractRegularizer) -> None:
    scale = getattr(h, "scale", None)
    if scale is not None and refuted(lambda: scale != 0, scale):
        raise ValueError(f"{type(h).__name__} of {type(g).__name__} has scale 0, so that no a acts; give scale 1")
