"""A Legendre function that the caller gives to a flow: does it belong to the problem?"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...checks import freeze, is_concrete
from ...geometry.base import AbstractLegendre
from ...problem import Problem
from ...problem.objective import AbstractMeasured
from ...problem.reparam import Weights

# Points at which an R is compared with the problem. The first is the start, where a wrong strength of h shows; at the
# others data that do not commute show.
POINTS = 3
# Between two points each of mu and a moves the weights by this share of themselves: far enough that a wrong R differs,
# near enough that a right one still exists.
SHARE = 0.25


def require_belonging(R: AbstractLegendre, problem: Problem, w0: Weights) -> Bool[Array, ""]:
    """Raises `ValueError` unless R is the Legendre function of the problem's g and h from the weights w0.

    **Returns:** False where numbers that are traced show at run time that it is not.
    """
    x0 = problem.g(w0)
    own = R.point_like()
    if (own.shape, own.dtype) != (x0.shape, x0.dtype):
        raise ValueError(
            f"the given R is for x of shape {own.shape} in {own.dtype}, but g(w0) has shape {x0.shape} in {x0.dtype}; "
            "build R by legendre(g, h, w0) from the same w0"
        )
    shaped = jax.eval_shape(lambda: R.weights(x0, jnp.zeros((), x0.dtype)))
    if [leaf.shape for leaf in jax.tree.leaves(shaped)] != [leaf.shape for leaf in jax.tree.leaves(w0)]:
        raise ValueError(
            f"the given R is for weights of shapes {_shapes(shaped)}, but w0 has {_shapes(w0)}; build R by "
            "legendre(g, h, w0) from the same w0"
        )
    parts = freeze((R, problem.g, problem.h, problem.objective, w0))
    if not is_concrete(parts):
        start, mismatch = _distances(*parts)
        return (start <= _tolerance(x0)) & (mismatch <= _tolerance(x0))
    if isinstance(problem.objective, AbstractMeasured):
        y = problem.objective.y
        R.check_measurements(jax.vmap(problem.objective.adjoint)(jnp.eye(y.size, dtype=y.dtype)))
    with jax.ensure_compile_time_eval():
        start, mismatch = eqx.filter_jit(_distances)(*parts)
        if not start <= _tolerance(x0):
            raise ValueError(
                f"the given R starts at weights that differ from w0 by {float(start):.3g} of them; build R by "
                "legendre(g, h, w0) from the same w0"
            )
        if not mismatch <= _tolerance(x0):
            raise ValueError(
                "the given R is not the Legendre function of this problem: its weights move otherwise than along the "
                f"gradients of g and h, by {float(mismatch):.3g} of the way; build R by legendre(g, h, w0) from the "
                "same g, h and w0, or leave it out"
            )
    return jnp.array(True)


def _shapes(tree: PyTree) -> str:
    return ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(tree))


def _tolerance(x: Array) -> float:
    """Half of the digits: an R of another problem differs by far more, one with integrations of its own by far less."""
    return float(jnp.finfo(x.dtype).eps) ** 0.5


def _distances(
    R: AbstractLegendre, g: PyTree, h: PyTree, objective: PyTree, w0: Weights
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far R starts from w0, and how far it is from its two identities, along the flow.

    They are `d psi = J^T (dmu - Lambda^T mu da) + grad h da`, Lambda the leak of R, and `grad Q_a = g(psi)`.

    psi(mu, a) are R's weights. Both distances are relative; points at which R does not exist are left out, since the
    flow has a status there. The points lie on the flow's own way, as some R hold for no other mu.
    """
    x0, structure = g(w0), jax.tree.structure(w0)

    def psi(mu: Float[Array, "..."], a: Float[Array, ""]) -> Weights:
        return jax.tree.unflatten(structure, jax.tree.leaves(R.weights(mu, a)))

    def follow(place: Any, _: None) -> tuple[Any, tuple[Float[Array, ""], Float[Array, ""]]]:
        mu, a = place
        w, along = jax.linearize(psi, mu, a)
        x, pull = jax.vjp(g, w)
        slope, decay = objective.gradient(x), jax.grad(h)(w)
        dmu = -SHARE * slope * _ratio(w, pull(slope)[0])
        da = -SHARE * _ratio(w, decay)
        moved = along(dmu, da)
        by_mu = pull(dmu - da * R.leak_product(mu))[0]
        expected = jax.tree.map(lambda by_mu, by_a: by_mu + da * by_a, by_mu, decay)
        apart = jnp.stack([_ratio(_difference(moved, expected), expected), _ratio(R.primal(mu, a).value - x, x)])
        mismatch = jnp.max(jnp.where(jnp.isfinite(apart), apart, 0.0))
        return (mu + dmu, a + da), (_ratio(_difference(w, w0), w0), mismatch)

    origin = jnp.zeros_like(x0), jnp.zeros((), x0.dtype)
    _, (starts, mismatches) = jax.lax.scan(follow, origin, length=POINTS)
    return starts[0], jnp.max(mismatches)


def _difference(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, one, other)


def _ratio(one: PyTree, other: PyTree) -> Float[Array, ""]:
    """`|one| / |other|`, the Euclidean lengths of trees; `|one|` where the other one is zero."""
    lengths = [jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))) for tree in (one, other)]
    return lengths[0] / jnp.where(lengths[1] > 0, lengths[1], 1.0)
