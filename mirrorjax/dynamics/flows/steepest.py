"""SteepestFlow: steepest descent in another norm, the continuous model of sign descent and Adam."""

from collections.abc import Callable
from typing import get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks import Number, as_time_scalar, is_concrete, refuted
from ...geometry.families.separable import refuse_unless
from ...geometry.families.steepest import SteepestLegendre
from ...geometry.points import as_finite_weights
from ...problem import AbstractRegularizer, AbstractReparameterization, Hadamard, Problem, WeightDecay
from ...problem.reparam import Weights
from ..motion import AbstractFlow, Solver, Time, refuse_nonsmooth
from .descent import Decay
from .gradients import AbstractPlainMotion, gradients


class SteepestFlow(AbstractFlow):
    """`dw/dt = -sign(G) |G|^(q-1)`, entry by entry, with G the gradient: q = 2 is gradient flow, q = 1 sign descent.

    With coupled decay `G = grad_w [f(g(w)) + alpha h(w)]`; with decoupled decay G is the gradient of f alone, and
    `-alpha grad h` is added to the velocity, as AdamW does. `mu = -int sign(grad f) |grad f|^(q-1) dt` is recorded.

    Theorem, for x = w_1 w_2 with decoupled weight decay c |w|^2: the balance `|w_1|^q - |w_2|^q` is multiplied by
    e^(2qca), and the flow is the mirror flow of `SteepestFlow.legendre`, whose dual variable leaks. Without decay
    `grad R(x) = mu`. The limit is the minimum of R_a on {Zx = y} only where mu stays in range(Z^T): for q = 2, or for
    rows of Z that share no entry and have entries of one size each. Measured on dense Z: mu leaves range(Z^T), and
    the KKT residual of the limit is not small. With coupled decay and q < 2 nothing of this is known.

    At q = 1 the velocity jumps where an entry of G changes sign, so that a solver with error control takes ever
    smaller steps along such a line: expect `max_steps_reached`, or shorten t1. For 1 < q < 2 the velocity has a kink
    there, and a step across it errs by more than its tolerance: by 4e-4 at rtol 1e-6 and below 1e-4 at 1e-8, measured.
    The flow then reaches a minimum of f in a finite time.

    **Arguments:** `q`: in [1, 2]; `decay`: `"coupled"` or `"decoupled"`.
    **Raises:** `ValueError` for a q outside [1, 2] or another `decay`; from `solve`, for a regularizer that is not
    differentiable.

    Source: Jacobs et al. (arXiv 2603.02064) for the balance and the Hessian without decay; the law of decay is derived
    by scaling w = e^s V. Both are pinned by integration in the tests.
    """

    q: Float[Array, ""]
    decay: Decay = eqx.field(static=True)  # static: two algorithms

    def __init__(self, q: Number, decay: Decay = "decoupled"):
        self.q, self.decay = as_time_scalar(q, "q"), decay
        if refuted(lambda: (self.q >= 1) & (self.q <= 2), self.q):
            raise ValueError(f"q must lie in [1, 2], from sign descent to gradient flow, got {self.q}")
        if decay not in get_args(Decay):
            raise ValueError(f'decay must be "coupled" or "decoupled", got {decay!r}')

    def prepare(self, problem: Problem, w0: Weights) -> "SteepestMotion":
        refuse_nonsmooth(problem)
        return SteepestMotion(problem, w0, self)

    def legendre(self, g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights) -> SteepestLegendre:
        """R_a of this flow: `Hess R_a(x) = (4 |x|^q + balance^2)^(-1/2)`, for x = w_1 w_2 with decoupled weight decay.

        `R.mirror_map(x_t, a_t)` is the dual variable mu_t, with `d mu/dt = -sign(grad f) |grad f|^(q-1) - alpha R.leak
        mu` and `leak = 2c (2 - q)`. `predict_limit(R, f, a)` is the limit of the flow for the measurements named above,
        and refuses others.

            R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(3), jnp.zeros(3)))
            mu = R.mirror_map(jnp.array([0.5, 0.0, -2.0]), a=-1.0)

        **Arguments:** `g`: `Hadamard()`; `h`: `WeightDecay(c)`; `w0`: the factors w_1 and w_2, of different sizes in
        every entry.
        **Returns:** an `AbstractLegendre`.
        **Raises:** `ValueError` for another g or h, for factors of equal size, and for coupled decay with q < 2, under
        which the balance obeys no law of its own.

        Source: Jacobs et al. (arXiv 2603.02064); the law of decay is derived by scaling and pinned by integration.
        """
        if not (isinstance(g, Hadamard) and g.depth == 2 and isinstance(h, WeightDecay)):
            raise ValueError(
                "R of a steepest flow is known for Hadamard() with WeightDecay(c) alone, got "
                f"{type(g).__name__}{f' of depth {g.depth}' if isinstance(g, Hadamard) else ''} with {type(h).__name__}"
            )
        if self.decay == "coupled" and not (is_concrete(self.q) and bool(self.q == 2)):
            raise ValueError(
                f"a steepest flow of order q = {self.q} with coupled decay is no mirror flow, since decay acts inside "
                'the power; use SteepestFlow(q, decay="decoupled"), or q = 2'
            )
        w0 = as_finite_weights(w0)
        g.check(w0)
        first, second = w0
        refuse_unless(
            lambda first, second: abs(first) != abs(second),
            (first, second),
            lambda first, second: (
                f"R of a steepest flow needs factors of different size, got w0 = ({first}, {second}); perturb one of "
                "them"
            ),
        )
        return SteepestLegendre((first, second), self.q, h.scale)


class SteepestState(eqx.Module):
    """The weights, and `mu = -int sign(grad f) |grad f|^(q-1) dt`."""

    w: Weights
    mu: Float[Array, "..."]


class SteepestMotion(AbstractPlainMotion):
    """`SteepestFlow` from given weights."""

    problem: Problem
    w0: Weights
    flow: SteepestFlow

    def initial(self) -> SteepestState:
        return SteepestState(self.w0, jnp.zeros_like(self.problem.g(self.w0)))

    def velocity(self, t: Time, state: SteepestState) -> SteepestState:
        slopes = gradients(self.problem, t, state.w)
        if self.flow.decay == "coupled":
            rate = jax.tree.map(lambda loss, decay: -self._steepest(loss + decay), slopes.loss, slopes.decay)
        else:
            rate = jax.tree.map(lambda loss, decay: -self._steepest(loss) - decay, slopes.loss, slopes.decay)
        return SteepestState(rate, -self._steepest(slopes.x))

    def limit_legendre(self) -> SteepestLegendre:
        return self.flow.legendre(self.problem.g, self.problem.h, self.w0)

    def default_solver(self, *, is_stiff: Callable[[], bool]) -> Solver:
        return diffrax.Tsit5()

    def _steepest(self, G: Array) -> Array:
        """`sign(G) |G|^(q-1)`; 0 at G = 0, with derivative 0 there, where the power has none."""
        size = jnp.where(G == 0, 1.0, jnp.abs(G))
        return jnp.sign(G) * size ** (self.flow.q.astype(G.dtype) - 1)
