"""RKC: the stabilized explicit solver for flows whose Jacobian has real, mostly negative eigenvalues."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ...checks import as_count, as_scalar, freeze, is_concrete
from .rkc_coefficients import MIN_STAGES, Method, Stage, first_stage, later_stage, stages_needed

Scalar = Float[Array, ""]
Count = Int[Array, ""]
Field = Callable[[Any, PyTree], PyTree]

# A cold power iteration, at the start of a solve, may use this many Jacobian-vector products, and stops once a product
# changes the estimate by no more than this share of it. After a jump it starts warm, and one to three products do.
MAX_PRODUCTS = 50
_SETTLED = 0.005
# The share of random directions kept in the iterate: an eigenvector that overtakes the largest then grows from 1%, not
# from rounding errors (a third of the steps, where measured). It lowers the estimate by 1e-4 of itself at most.
_MIXING = 0.01
# A batch is not narrowed below this: its products would take as long.
_NARROWEST = 4
# The most numbers of `noise` that are a constant of the program.
_CONSTANT = 4096


class RKCState(eqx.Module):
    """The state that `RKC` carries from step to step; `SaveAt(solver_state=True)` returns it as `sol.solver_state`.

    `f` is the vector field at the current point; `vector` the iterate of the power iteration, shaped like y; `radius`
    the estimate of the Jacobian's spectral radius there, 1/time. `num_evaluations` counts vector-field values and
    `num_products` Jacobian-vector products (each costs about one more value), from the start of the solve, in accepted
    steps: diffrax drops the state of rejected ones, of which `sol.stats["num_rejected_steps"]` is the number.
    """

    f: PyTree
    vector: PyTree
    radius: Scalar
    num_evaluations: Count
    num_products: Count


class RKC(diffrax.AbstractAdaptiveSolver[RKCState]):
    """`P_s(z) = a_s + b_s T_s(w_0 + w_1 z)`: the second-order Runge-Kutta-Chebyshev method, of s >= 2 stages a step.

    For `dy/dt = f(t, y)` whose Jacobian has real, mostly negative eigenvalues, such as gradient flows after their first
    moments, where the step of Tsit5 is limited by stability and not by accuracy. s stages are stable for `-beta(s) <= h
    lambda <= 0` with `beta(s) = 0.653 (s^2 - 1)`, so a step of size h costs about `sqrt(1.54 h rho)` evaluations. Each
    step takes the least s for which `beta(s) >= safety h rho`; rho, the spectral radius of the Jacobian, comes from a
    power iteration by Jacobian-vector products, one a step, carried along. Growing modes and eigenvalues of small
    imaginary part are allowed; there the error estimate `0.8 (y_n - y_{n+1}) + 0.4 h (f_n + f_{n+1})` limits the step.

    A step that needs more than `max_stages` is not tried: its error is reported as infinite, so that an adaptive
    controller repeats it with a fifth of the size. Where the step cannot shrink (`ConstantStepSize`, `dtmin` with
    `force_dtmin`) the solve ends with `diffrax.RESULTS.dt_min_reached`. So does one whose Jacobian is NaN or infinite.

    Differentiable in forward and reverse mode under any adjoint that differentiates the steps
    (`RecursiveCheckpointAdjoint`, `DirectAdjoint`, `ForwardMode`); s and rho are taken as constants. The vector field
    must itself be differentiable in forward mode. Only a lone `diffrax.ODETerm` of real numbers is accepted.

    **Arguments:**

    - `max_stages`: the largest number of stages in one step.
    - `safety`: the factor on the spectral radius, at least 1. The power iteration finds it from below, to within a few
      percent once warm; a Jacobian that grows in a step needs some room as well.

    **Raises:** `ValueError` when `max_stages` is below 2 or `safety` below 1.

    Source: Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comput. Appl. Math. 88 (1998).
    """

    max_stages: int = eqx.field(static=True)  # static: reverse mode sizes its loop over the stages by it
    safety: Scalar

    ERROR_ORDER: ClassVar = 3
    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def __init__(self, max_stages: int = 256, safety: ArrayLike = 1.2):
        self.max_stages = as_count(max_stages, "max_stages", least=MIN_STAGES)
        self.safety = as_scalar(safety, "safety")
        if is_concrete(self.safety) and not 1 <= float(self.safety) < float("inf"):
            raise ValueError(f"safety must be at least 1 and finite, got {self.safety}: below 1 steps are unstable")

    def order(self, terms: PyTree) -> int:
        return 2

    def error_order(self, terms: PyTree) -> int:
        return self.ERROR_ORDER

    def func(self, terms: Any, t0: Scalar, y0: PyTree, args: PyTree) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Scalar, t1: Scalar, y0: PyTree, args: PyTree) -> RKCState:
        field = _close(terms, t0, y0, args)
        nothing = jnp.zeros((), jnp.result_type(t0)), jnp.array(0), jnp.array(0)
        return _renew(field, t0, y0, RKCState(y0, noise(y0), *nothing))

    def step(
        self,
        terms: Any,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: PyTree,
        solver_state: RKCState,
        made_jump: Bool[ArrayLike, ""],
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], RKCState, diffrax.RESULTS]:
        field = _close(terms, t0, y0, args)
        state = _after_jump(field, t0, y0, solver_state, made_jump)
        needed = stages_needed(self.safety.astype(state.radius.dtype) * state.radius * (t1 - t0))
        possible = needed <= self.max_stages  # False also where the radius is NaN
        s = jnp.where(possible, needed, MIN_STAGES).astype(int)
        # A step that is not possible is replaced by one of size 0, which can overflow neither here nor in a gradient.
        h = jnp.where(possible, terms.contr(t0, t1), 0)
        step = _Step(field, t0, jnp.where(possible, t1 - t0, 0), h, y0, state.f, s)
        move = _move(step, max_stages=self.max_stages)
        y1 = jax.tree.map(jnp.add, y0, move)
        f1, product = jax.jvp(lambda y: field(t1, y), (y1,), (state.vector,))
        k0, k1 = _scale(h, state.f), _scale(h, f1)
        error = jax.tree.map(lambda m, a, b: jnp.where(possible, 0.4 * (a + b) - 0.8 * m, jnp.inf), move, k0, k1)
        vector, radius = lax.stop_gradient(power_iterate(product, state.vector, state.radius.dtype))
        new_state = RKCState(f1, vector, radius, state.num_evaluations + s, state.num_products + 1)
        result = diffrax.RESULTS.where(possible, diffrax.RESULTS.successful, diffrax.RESULTS.dt_min_reached)
        return y1, error, {"y0": y0, "y1": y1, "k0": k0, "k1": k1}, new_state, result


def _close(terms: Any, t: Scalar, y: PyTree, args: PyTree) -> Field:
    """Converts the vector field to a function of (t, y) whose closed-over arrays are leaves, as custom rules need."""
    return eqx.filter_closure_convert(lambda t, y: terms.vf(t, y, args), t, y)


class _Step(NamedTuple):
    """A step of the method: `h` is `duration`, negative where diffrax integrates back in time; `s` stages."""

    field: Field
    t0: Scalar
    duration: Scalar
    h: Scalar
    y0: PyTree
    f0: PyTree
    s: Count


class _Stages(NamedTuple):
    """State of the recurrence after some stages: the coefficients of the last stage, and `d_{j-2}`, `d_{j-1}`."""

    stage: Stage
    b_before: Scalar
    older: PyTree
    newer: PyTree


@eqx.filter_custom_jvp
def _move(step: _Step, *, max_stages: int) -> PyTree:
    """`y_{n+1} - y_n`. A batch spends its stages on the lanes that need them: see `_move_lanes`."""
    arrays, static = eqx.partition(step, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def one(arrays: _Step) -> PyTree:
        step = eqx.combine(arrays, static)
        first = jnp.array(MIN_STAGES), _first_stage(step)
        return _until(step.s, lambda j, stages: _next_stage(step, j, stages), *first)[1].newer

    @one.def_vmap
    def lanes(size: int, batched: list[_Step], arrays: _Step) -> tuple[PyTree, PyTree]:
        moves = _move_lanes(size, batched[0], arrays, static)
        return moves, jax.tree.map(lambda _: True, moves)

    return one(arrays)


@_move.def_jvp
def _move_jvp(primals: tuple, tangents: tuple, *, max_stages: int) -> tuple[PyTree, PyTree]:
    """A plain loop is the fastest but cannot be transposed; one of bounded length can, and serves both modes."""

    def bounded(step: _Step) -> PyTree:
        last = eqxi.unvmap_max(step.s)
        start = jnp.array(MIN_STAGES), _first_stage(step)
        return eqxi.while_loop(
            lambda carry: carry[0] <= last,
            lambda carry: (carry[0] + 1, _next_stage(step, *carry)),
            start,
            kind="bounded",
            max_steps=max_stages,
        )[1].newer

    return eqx.filter_jvp(bounded, primals, tangents)


def _move_lanes(size: int, batched: _Step, arrays: _Step, static: _Step) -> PyTree:
    """The moves of a batch.

    Its lanes need from 2 to some dozen stages, and few of them need many. They are sorted by their number of stages,
    and late stages are computed for a quarter, then a sixteenth of the lanes.
    """
    s = arrays.s if batched.s else jnp.full(size, arrays.s)
    order = jnp.argsort(-s)
    s, arrays = s[order], jax.tree.map(lambda leaf, many: leaf[order] if many else leaf, arrays, batched)
    axes = jax.tree.map(lambda many: 0 if many else None, batched)
    first = jax.vmap(lambda arrays: _first_stage(eqx.combine(arrays, static)), in_axes=(axes,))
    after = jax.vmap(
        lambda arrays, j, stages: _next_stage(eqx.combine(arrays, static), j, stages), in_axes=(axes, None, 0)
    )
    widths = [width for width in (size, size // 4, size // 16) if width == size or width >= _NARROWEST]
    j, stages = jnp.array(MIN_STAGES), first(arrays)
    for width, narrower in itertools.pairwise([*widths, 0]):
        part = jax.tree.map(lambda leaf, many, width=width: leaf[:width] if many else leaf, arrays, batched)
        head = jax.tree.map(lambda leaf, width=width: leaf[:width], stages)
        j, head = _until(s[narrower], lambda j, stages, part=part: after(part, j, stages), j, head)
        stages = jax.tree.map(lambda leaf, new, width=width: leaf.at[:width].set(new), stages, head)
    return jax.tree.map(lambda leaf: leaf[jnp.argsort(order)], stages.newer)


def _until(last: Count, after: Callable, j: Count, stages: _Stages) -> tuple[Count, _Stages]:
    """The stages from number j to the last."""
    return lax.while_loop(lambda carry: carry[0] <= last, lambda carry: (carry[0] + 1, after(*carry)), (j, stages))


def _first_stage(step: _Step) -> _Stages:
    """`d_0 = 0`, `d_1 = mu~_1 h f_0`."""
    method = Method(step.s, step.duration.dtype)
    start = first_stage(method)
    zeros = jax.tree.map(jnp.zeros_like, step.y0)
    return _Stages(start, start.b, zeros, _scale(start.b * method.w1 * step.h, step.f0))


def _next_stage(step: _Step, j: Count, stages: _Stages) -> _Stages:
    """Stage j of the recurrence for the differences `d_j = Y_j - y_n`, which round to less than the Y_j:

    `d_j = mu_j d_{j-1} + nu_j d_{j-2} + mu~_j h f(t_n + c_{j-1} h, y_n + d_{j-1}) + gamma~_j h f_0`. Lanes of a batch
    that need fewer stages than others keep `d_s` by `mu = 1` and zeros, which costs no copy of the state, as a loop
    that masks its carry would.
    """
    method = Method(step.s, step.duration.dtype)
    stage, newer = stages.stage, stages.newer
    f = step.field(step.t0 + stage.c * step.duration, jax.tree.map(jnp.add, step.y0, newer))
    new = later_stage(j, method)
    weights = recurrence_weights(new, stage, stages.b_before, method, step.h)
    kept = (1.0, 0.0, 0.0, 0.0)
    weights = tuple(jnp.where(j <= step.s, weight, keep) for weight, keep in zip(weights, kept, strict=True))
    return _Stages(new, stage.b, newer, _combine(weights, (newer, stages.older, f, step.f0)))


def recurrence_weights(
    new: Stage, stage: Stage, b_before: Scalar, method: Method, h: Scalar
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """`mu_j = 2 w_0 b_j / b_{j-1}`, `nu_j = -b_j / b_{j-2}`, `mu~_j h = 2 w_1 h b_j / b_{j-1}`, `gamma~_j = -a_{j-1}
    mu~_j`."""
    ratio = new.b / stage.b
    mu_tilde = 2 * method.w1 * ratio * h
    return 2 * method.w0 * ratio, -new.b / b_before, mu_tilde, -stage.a * mu_tilde


def _combine(weights: tuple[Scalar, ...], trees: tuple[PyTree, ...]) -> PyTree:
    """The sum of weight times tree, each leaf in its own precision."""

    def leaf(*leaves: Array) -> Array:
        return sum(weight.astype(x.dtype) * x for weight, x in zip(weights, leaves, strict=True))  # pyright: ignore

    return jax.tree.map(leaf, *trees)


def _scale(factor: Scalar, tree: PyTree) -> PyTree:
    return _combine((factor,), (tree,))


def _after_jump(field: Field, t: Scalar, y: PyTree, state: RKCState, made_jump: Bool[ArrayLike, ""]) -> RKCState:
    """Renews f and the radius in lanes whose vector field has just jumped."""
    if made_jump is False:  # known when tracing, in solves that declare no jumps
        return state
    made_jump = jnp.asarray(made_jump)
    renewed = lax.cond(eqxi.unvmap_any(made_jump), lambda: _renew(field, t, y, state, made_jump), lambda: state)
    return jax.tree.map(lambda new, old: jnp.where(made_jump, new, old), renewed, state)


def _renew(field: Field, t: Scalar, y: PyTree, state: RKCState, wanted: Bool[ArrayLike, ""] = True) -> RKCState:
    """Computes f at (t, y), and power iterations from the state's vector until the estimate of the radius settles.

    `wanted`: False for lanes of a batch that need no renewal; they do not keep the loop running.
    """
    dtype = state.radius.dtype
    # Frozen before and not after the loop, which could not be transposed if anything in it were differentiated.
    frozen, t_frozen, y_frozen, vector, before = freeze((field, t, y, state.vector, state.radius))
    _, multiply = jax.linearize(lambda y: frozen(t_frozen, y), y_frozen)

    def unsettled(carry: tuple) -> Bool[Array, ""]:
        count, _, radius, before = carry
        return wanted & (count < MAX_PRODUCTS) & jnp.logical_not(has_settled(radius, before))

    def iterate(carry: tuple) -> tuple:
        count, vector, radius, _ = carry
        return count + 1, *power_iterate(multiply(vector), vector, dtype), radius

    count, vector, radius, _ = lax.while_loop(unsettled, iterate, iterate((jnp.array(0), vector, before, before)))
    return RKCState(field(t, y), vector, radius, state.num_evaluations + 1, state.num_products + count)


def has_settled(radius: Scalar, before: Scalar) -> Bool[Array, ""]:
    """True if a product has changed the estimate of the radius by little, or if the estimate is not a number."""
    return jnp.logical_not(jnp.abs(radius - before) > _SETTLED * radius)


def power_iterate(product: PyTree, vector: PyTree, dtype: jnp.dtype) -> tuple[PyTree, Scalar]:
    """`(J v / |J v| + noise, |J v| / |v|)`: the next vector of the power iteration, and its estimate of the radius."""
    size, stir = norm(product, dtype), noise(vector)
    shrink = 1 / jnp.maximum(size, jnp.finfo(dtype).tiny)  # a product of 0 leaves the noise alone
    mixed = _combine((shrink, _MIXING / norm(stir, dtype)), (product, stir))
    return mixed, size / norm(vector, dtype)


def noise(y: PyTree) -> PyTree:
    """Fixed numbers without a pattern, shaped like y: the same in every step, lane and solve.

    Number i is `frac(i^2 (sqrt 5 - 1) / 2) - 1/2`. Normal random numbers would serve as well, but drawing them takes
    longer to compile than three velocities, and a solver calls this inside its loop.
    """
    leaves, structure = jax.tree.flatten(y)
    firsts = itertools.accumulate([leaf.size for leaf in leaves[:-1]], initial=1)
    values = [_noise(first, leaf) for first, leaf in zip(firsts, leaves, strict=True)]
    return jax.tree.unflatten(structure, values)


def _noise(first: int, like: Array) -> Array:
    # A loop reads a constant faster than it computes it, but a long one makes the program slow to compile.
    xp: Any = np if like.size <= _CONSTANT else jnp
    count = xp.arange(like.size, dtype=np.uint32) + xp.uint32(first)
    # Products of 32 bits wrap around, which keeps the fractional part. 2654435769 is 2^32 (sqrt 5 - 1) / 2, rounded.
    fraction = (count * count * xp.uint32(2654435769)).astype(like.dtype) * 2.0**-32
    return jnp.asarray((fraction - 0.5).reshape(like.shape), like.dtype)


def norm(tree: PyTree, dtype: jnp.dtype) -> Scalar:
    """The Euclidean norm over all leaves, in the precision of time."""
    squares = [jnp.sum(jnp.square(x)).astype(dtype) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))
