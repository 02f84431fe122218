"""RKC: the stabilized explicit solver for gradient flows, whose linearization has real non-positive eigenvalues."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from .rkc_coefficients import Method, Stage, first_stage, later_stage, stages_needed

Time = Real[ArrayLike, ""]
Scalar = Float[Array, ""]
Field = Callable[[Any, PyTree], PyTree]

# The power iteration starts cold once a solve; after that one product a step, and a few after a jump, keep it warm.
_COLD_ITERATIONS = 50
_COLD_TOLERANCE = 0.01
# A share of all directions in the iterate, so that an eigenvector that overtakes the largest is found from 1%, not from
# rounding errors; it changes the estimate by 1e-4 at most.
_MIXING = 0.01


class RKCState(eqx.Module):
    """What RKC carries from step to step; `sol.solver_state` when saved by `SaveAt(solver_state=True)`.

    `num_evaluations` counts vector-field values and `num_products` Jacobian-vector products, each about one more value;
    both in accepted steps only, as diffrax keeps no state of rejected ones.
    """

    f: PyTree
    direction: PyTree
    radius: Scalar
    num_evaluations: Int[Array, ""]
    num_products: Int[Array, ""]


class RKC(diffrax.AbstractAdaptiveSolver[RKCState]):
    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    max_stages: int = eqx.field(static=True, default=256)  # static: reverse mode sizes its checkpoints by it
    kind: str = eqx.field(static=True, default="bounded")
    safety: float = eqx.field(static=True, default=1.2)

    def order(self, terms: PyTree) -> int:
        return 2

    def error_order(self, terms: PyTree) -> int:
        return 3

    def func(self, terms: Any, t0: Time, y0: PyTree, args: PyTree) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Time, t1: Time, y0: PyTree, args: PyTree) -> RKCState:
        zero = jnp.zeros((), jnp.result_type(t0))
        blank = RKCState(None, _noise(y0), zero, jnp.array(0), jnp.array(0))
        return _restart(_convert(terms, t0, y0, args), t0, y0, blank)

    def step(self, terms: Any, t0: Time, t1: Time, y0: PyTree, args: PyTree, solver_state: RKCState, made_jump):
        field = _convert(terms, t0, y0, args)
        state = _after_jump(field, t0, y0, solver_state, made_jump)
        control = terms.contr(t0, t1)
        h = t1 - t0
        k0 = terms.prod(state.f, control)
        needed = stages_needed(self.safety * state.radius * h)
        within = needed <= self.max_stages  # False for a radius that is NaN
        s = jnp.where(within, needed, 2).astype(int)

        def increment(t, y):
            return terms.prod(field(t, y), control)

        move = self._advance(increment, t0, h, y0, k0, s)
        y1 = jax.tree.map(jnp.add, y0, move)
        f1, slope = jax.jvp(lambda y: field(t1, y), (y1,), (state.direction,))
        k1 = terms.prod(f1, control)
        y_error = jax.tree.map(lambda m, k, l: jnp.where(within, 0.4 * (k + l) - 0.8 * m, jnp.inf), move, k0, k1)
        direction, rate = _power_step(terms.prod(slope, control), state.direction, h.dtype)
        radius = jnp.where(h > 0, rate / h, state.radius)
        new = RKCState(
            f1,
            lax.stop_gradient(direction),
            lax.stop_gradient(radius),
            state.num_evaluations + s,
            state.num_products + 1,
        )
        dense = dict(y0=y0, y1=y1, k0=k0, k1=k1)
        result = diffrax.RESULTS.where(within, diffrax.RESULTS.successful, diffrax.RESULTS.dt_min_reached)
        return y1, y_error, dense, new, result

    def _advance(self, increment, t0, h, y0, k0, s):
        method = Method(s, h.dtype)
        first = first_stage(method)
        move = jax.tree.map(lambda k: (first.b * method.w1).astype(k.dtype) * k, k0)
        stop = eqxi.unvmap_max(s)

        def body(carry):
            j, stage, b_before, older, newer = carry
            k = increment(t0 + stage.c * h, jax.tree.map(jnp.add, y0, newer))
            new = later_stage(j, method)
            active = j <= s
            scale = new.b / stage.b
            mu = jnp.where(active, 2 * method.w0 * scale, 1)
            nu = jnp.where(active, -new.b / b_before, 0)
            mu_k = jnp.where(active, 2 * method.w1 * scale, 0)
            gamma_k = -stage.a * mu_k
            move = jax.tree.map(
                lambda p, q, k, l: mu.astype(p.dtype) * p
                + nu.astype(p.dtype) * q
                + mu_k.astype(p.dtype) * k
                + gamma_k.astype(p.dtype) * l,
                newer,
                older,
                k,
                k0,
            )
            return j + 1, new, stage.b, newer, move

        carry = (jnp.array(2), first, first.b, jax.tree.map(jnp.zeros_like, move), move)
        kw = dict(max_steps=self.max_stages) if self.kind == "bounded" else {}
        return eqxi.while_loop(lambda c: c[0] <= stop, body, carry, kind=self.kind, **kw)[-1]


def _convert(terms, t0, y0, args) -> Field:
    return eqx.filter_closure_convert(lambda t, y: terms.vf(t, y, args), t0, y0)


def _norm(tree, dtype):
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)).astype(dtype) for x in jax.tree.leaves(tree)))


def _noise(y):
    leaves, treedef = jax.tree.flatten(y)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    noise = [jax.random.normal(k, jnp.shape(x), x.dtype) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, noise)


def _power_step(product, direction, dtype):
    size = _norm(product, dtype)
    rate = size / _norm(direction, dtype)
    scale = 1 / jnp.maximum(size, jnp.finfo(dtype).tiny)
    noise = _noise(direction)
    weight = _MIXING / _norm(noise, dtype)
    mixed = jax.tree.map(lambda p, n: scale.astype(p.dtype) * p + weight.astype(p.dtype) * n, product, noise)
    return mixed, rate


def _after_jump(field, t, y, state, made_jump):
    if made_jump is False:
        return state
    made_jump = jnp.asarray(made_jump)
    restarted = lax.cond(
        eqxi.unvmap_any(made_jump), lambda: _restart(field, t, y, state), lambda: state
    )
    return jax.tree.map(lambda a, b: jnp.where(made_jump, a, b), restarted, state)


def _restart(field, t, y, state):
    f = field(t, y)
    frozen_field, frozen_t, frozen_y = jax.tree.map(
        lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, (field, t, y)
    )
    dtype = state.radius.dtype
    _, product = jax.linearize(lambda y: frozen_field(frozen_t, y), frozen_y)

    def unsettled(carry):
        i, _, radius, before = carry
        return (i < _COLD_ITERATIONS) & ~(jnp.abs(radius - before) <= _COLD_TOLERANCE * radius)

    def iterate(carry):
        i, direction, radius, _ = carry
        direction, new = _power_step(product(direction), direction, dtype)
        return i + 1, direction, new, radius

    radius0 = lax.stop_gradient(state.radius)
    first = iterate((jnp.array(0), lax.stop_gradient(state.direction), radius0, radius0))
    i, direction, radius, _ = lax.while_loop(unsettled, iterate, first)
    return RKCState(f, direction, radius, state.num_evaluations + 1, state.num_products + i)
