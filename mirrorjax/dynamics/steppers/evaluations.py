"""RKC for the lanes of a sweep, whose unit of work is one evaluation of the velocity, not one step.

Under vmap a step of `RKC` ends for all lanes together, once the lane with the most stages has taken them: several times
the evaluations that a lane needs. Here each lane stands at its own stage. A round evaluates the velocity once for every
lane, and each lane makes of it what it waits for: a stage, the end of its step, a product of the power iteration, or
the velocity after a jump. Products are differences of two velocities, as in the published code, since a derivative
would cost every lane two to three rounds. Not for reverse mode, which a sweep does not need.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...problem import Problem
from ...problem.reparam import Weights
from ..integrate import make_controller, saving, to_ticks, velocity
from ..lane import Progress
from ..options import Options
from ..solvers.rkc import MAX_PRODUCTS, MIN_STAGES, RKC, has_settled, noise, norm, power_iterate, recurrence_weights
from ..solvers.rkc_coefficients import Method, Stage, first_stage, later_stage, longest, stages_needed

Scalar = Float[Array, ""]
Flag = Bool[Array, ""]
Count = Int[Array, ""]
# Makes a function of (problem, w0, ..) of one lane a function of many: of their parameters and whatever follows.
Each = Callable[[Callable], Callable]

# What the next velocity is for: f where it has just jumped; a product of the power iteration; a stage or, after the
# last one, the end of the step. Or nothing: the lane is through, or cannot go on.
RENEW, PRODUCT, STAGE, THROUGH, STUCK = range(5)
# Steps that one product serves. One a step is 15% more evaluations and no fewer steps on the matrix-sensing sweep; one
# every 25, as in the published code, meets more rejected steps.
PRODUCT_EVERY = 4
# Lanes whose save times are read together: few pass one in the same round, and a metric may cost more than a velocity.
SAVING = 4


class Stages(eqx.Module):
    """Within a step: the number j of the next stage, the coefficients of the last one, `b_{j-2}`, and the differences
    `d_{j-2}` and `d_{j-1}`, which are 0 between steps."""

    j: Count
    last: Stage
    b_before: Scalar
    older: PyTree
    newer: PyTree


class Power(eqx.Module):
    """The power iteration: its vector, the estimate of the radius, how many products it made in a row, and how many
    steps ago; -1 where the estimate has still to settle, at the start and after a jump."""

    vector: PyTree
    radius: Scalar
    products: Count
    age: Count


class Walk(eqx.Module):
    """What a lane carries beside its tick and state, which are those at the start of its step.

    - `phase`: what the next velocity is for. `until`, `s`: the tick where the step ends, and its number of stages.
    - `control`: the state of the step-size controller. `velocity`: f at (tick, state).
    """

    phase: Count
    until: Scalar
    s: Count
    control: PyTree
    velocity: PyTree
    stages: Stages
    power: Power


class Verdict(eqx.Module):
    """The end of a step: whether this is one, whether the step is kept, what was met, and what comes next."""

    closed: Flag
    kept: Flag
    jumped: Flag
    stuck: Flag
    tick: Scalar
    until: Scalar
    control: PyTree


def set_out(tick: Scalar, state: PyTree, until: Scalar, control: PyTree) -> Walk:
    """A lane at the start, which knows nothing yet but the length of its first step."""
    zeros, zero, none = jax.tree.map(jnp.zeros_like, state), jnp.zeros_like(tick), jnp.array(0)
    return Walk(
        phase=jnp.array(RENEW),
        until=until,
        s=none,
        control=control,
        velocity=zeros,
        stages=Stages(none, Stage(zero, zero, zero), zero, zeros, zeros),
        power=Power(noise(state), zero, none, jnp.array(-1)),
    )


def walk_on(each: Each, options: Options, values: PyTree, lanes: Progress, rounds: int) -> Progress:
    """A batch of lanes after so many rounds; those through or stuck stay as they are."""

    def one_round(_: Count, lanes: Progress) -> Progress:
        f = each(lambda problem, w0, lane: _evaluate(problem, options, w0, lane))(values, lanes)
        verdict = each(lambda problem, w0, lane, f: _judge(problem, options, lane, f))(values, lanes, f)
        lanes = _save(each, options, values, lanes, verdict, f)
        return jax.vmap(lambda lane, verdict, f: _move_on(options, lane, verdict, f))(lanes, verdict, f)

    return jax.lax.fori_loop(0, rounds, one_round, lanes)


def _evaluate(problem: Problem, options: Options, w0: Weights, lane: Progress) -> PyTree:
    """The velocity that the lane waits for."""
    context, _ = options.flow.start(problem, w0)
    walk, stages = lane.carried, lane.carried.stages
    within = jnp.where(stages.j > walk.s, walk.until, lane.tick + stages.last.c * (walk.until - lane.tick))
    tick = jnp.where(walk.phase == STAGE, within, lane.tick)
    reach = jnp.where(walk.phase == PRODUCT, _reach(lane), 0)
    y = jax.tree.map(lambda y, d, v: y + d + reach.astype(v.dtype) * v, lane.state, stages.newer, walk.power.vector)
    return velocity(tick, y, (options.flow, context, lane.state))


def _reach(lane: Progress) -> Scalar:
    """How far along the vector a product is taken: `sqrt(eps) |y|`, which is right to half of the digits."""
    dtype = lane.tick.dtype
    size = norm(lane.state, dtype)
    return jnp.sqrt(jnp.finfo(dtype).eps) * jnp.where(size > 0, size, 1) / norm(lane.carried.power.vector, dtype)


def _judge(problem: Problem, options: Options, lane: Progress, f: PyTree) -> Verdict:
    """Error control, by the estimate `0.8 (y_n - y_{n+1}) + 0.4 h (f_n + f_{n+1})`."""
    walk, h, dtype = lane.carried, lane.carried.until - lane.tick, lane.tick.dtype
    closed = lane.running & (walk.phase == STAGE) & (walk.stages.j > walk.s)

    def estimate(d: Array, before: Array, after: Array) -> Array:
        return 0.4 * h.astype(d.dtype) * (before + after) - 0.8 * d

    kept, tick, until, jumped, control, result = make_controller(problem, options, dtype).adapt_step_size(
        lane.tick,
        walk.until,
        lane.state,
        jax.tree.map(jnp.add, lane.state, walk.stages.newer),
        None,
        jax.tree.map(estimate, walk.stages.newer, walk.velocity, f),
        RKC.ERROR_ORDER,
        walk.control,
    )
    return Verdict(
        closed=closed,
        kept=closed & kept,
        jumped=closed & kept & jumped,
        stuck=closed & (result != diffrax.RESULTS.successful),
        tick=jnp.where(closed, tick, lane.tick),
        until=jnp.where(closed, jnp.minimum(until, to_ticks(options.t1, options.flow, dtype)), walk.until),
        control=_choose(closed, control, walk.control),
    )


def _save(each: Each, options: Options, values: PyTree, lanes: Progress, verdict: Verdict, f: PyTree) -> Progress:
    """The lanes with what is due at save times within the steps just kept, read for a few lanes at a time."""
    count, size = lanes.tick.shape[0], options.ts.size
    ticks = to_ticks(options.ts, options.flow, lanes.tick.dtype)

    def due(saved: Int[Array, " lanes"]) -> Bool[Array, " lanes"]:
        return verdict.kept & (saved < size) & (ticks[jnp.minimum(saved, size - 1)] <= lanes.carried.until)

    def some(carry: tuple) -> tuple:
        saved, buffers = carry
        wanted, chosen = jax.lax.top_k(due(saved).astype(int), min(SAVING, count))
        chosen = jnp.where(wanted == 1, chosen, count)
        row, *arguments = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), (saved, values, lanes, f))
        new = each(lambda problem, w0, *rest: _read(problem, options, w0, *rest))(*arguments, ticks[row])
        buffers = jax.tree.map(lambda buffer, new: buffer.at[chosen, row].set(new, mode="drop"), buffers, new)
        return saved.at[chosen].add(1, mode="drop"), buffers

    start = lanes.saved, (lanes.metrics, lanes.loss)
    saved, (metrics, loss) = jax.lax.while_loop(lambda carry: jnp.any(due(carry[0])), some, start)
    return eqx.tree_at(lambda lanes: (lanes.saved, lanes.metrics, lanes.loss), lanes, (saved, metrics, loss))


def _read(problem: Problem, options: Options, w0: Weights, lane: Progress, f: PyTree, tick: Scalar) -> PyTree:
    """What is kept at a tick of the step that ends now. A save time at a breakpoint lies just before the next step."""
    context, _ = options.flow.start(problem, w0)
    walk, h = lane.carried, lane.carried.until - lane.tick
    slopes = [jax.tree.map(lambda leaf: h.astype(leaf.dtype) * leaf, rate) for rate in (walk.velocity, f)]
    end = jax.tree.map(jnp.add, lane.state, walk.stages.newer)
    state = diffrax.ThirdOrderHermitePolynomialInterpolation(
        t0=lane.tick, t1=walk.until, y0=lane.state, y1=end, k0=slopes[0], k1=slopes[1]
    ).evaluate(jnp.maximum(tick, lane.tick))
    return saving(options)(tick, state, (options.flow, context, lane.state))


def _move_on(options: Options, lane: Progress, verdict: Verdict, f: PyTree) -> Progress:
    """The lane with its velocity used."""
    walk, closed, kept = lane.carried, verdict.closed, verdict.kept
    steps = lane.steps + _one_if(closed)
    power = _iterate(lane, verdict, f)
    phase = _next_phase(walk, verdict, power)
    over = closed & (
        (verdict.tick >= to_ticks(options.t1, options.flow, lane.tick.dtype)) | (steps >= options.max_steps)
    )
    begins = (phase == STAGE) & (closed | (walk.phase == PRODUCT)) & jnp.logical_not(over)
    until, s, possible = _plan(options, verdict, power)
    phase = jnp.where((begins & jnp.logical_not(possible)) | verdict.stuck, STUCK, jnp.where(over, THROUGH, phase))
    here = _choose(kept | (walk.phase == RENEW), f, walk.velocity)
    moved = Walk(
        phase=phase,
        until=jnp.where(begins, until, verdict.until),
        s=jnp.where(begins, s, walk.s),
        control=verdict.control,
        velocity=here,
        stages=walk.stages,
        power=power,
    )
    return Progress(
        tick=verdict.tick,
        state=_choose(kept, jax.tree.map(jnp.add, lane.state, walk.stages.newer), lane.state),
        carried=eqx.tree_at(lambda moved: moved.stages, moved, _next_stages(lane, moved, verdict, begins, f)),
        saved=lane.saved,
        metrics=lane.metrics,
        loss=lane.loss,
        steps=steps,
        rejected_steps=lane.rejected_steps + _one_if(closed & jnp.logical_not(kept)),
        work=lane.work + _one_if(walk.phase < THROUGH),
        running=lane.running,
        result=lane.result,
    )


def _iterate(lane: Progress, verdict: Verdict, f: PyTree) -> Power:
    """The power iteration, where the velocity was for a product."""
    walk, power, reach = lane.carried, lane.carried.power, _reach(lane)
    made = walk.phase == PRODUCT
    product = jax.tree.map(lambda far, near: (far - near) / reach.astype(far.dtype), f, walk.velocity)
    vector, radius = power_iterate(product, power.vector, lane.tick.dtype)
    settled = (power.age >= 0) | has_settled(radius, power.radius) | (power.products + 1 >= MAX_PRODUCTS)
    age = jnp.where(made & settled, 0, power.age + _one_if(verdict.closed & (power.age >= 0)))
    return Power(
        vector=_choose(made, vector, power.vector),
        radius=jnp.where(made, radius, power.radius),
        products=jnp.where(made, power.products + 1, 0),
        age=jnp.where(verdict.jumped, -1, age),
    )


def _next_phase(walk: Walk, verdict: Verdict, power: Power) -> Count:
    """After a jump f is renewed, then products are made until their estimate settles. Later one is made every few
    steps, and after a rejected one, whose cause may be a radius that was out of date."""
    rejected = verdict.closed & jnp.logical_not(verdict.kept)
    outdated = verdict.closed & ((power.age >= PRODUCT_EVERY) | (rejected & (power.age > 0)))
    unsettled = (walk.phase == RENEW) | ((walk.phase == PRODUCT) & (power.age < 0))
    phase = jnp.where(outdated | unsettled, PRODUCT, jnp.where(walk.phase < THROUGH, STAGE, walk.phase))
    return jnp.where(verdict.jumped, RENEW, phase)


def _plan(options: Options, verdict: Verdict, power: Power) -> tuple[Scalar, Count, Flag]:
    """Where the next step ends, in how many stages, and whether it can be taken at all: no longer than the most stages
    reach, which must be far enough to move t (and is not where the radius is infinite or NaN)."""
    solver, radius, tick = options.solver, power.radius, verdict.tick
    assert isinstance(solver, RKC)
    bound = solver.safety.astype(radius.dtype) * radius
    reached = longest(solver.max_stages) / jnp.maximum(bound, jnp.finfo(radius.dtype).tiny)
    possible = (reached > 4 * jnp.finfo(tick.dtype).eps * tick) & jnp.isfinite(bound)
    until = jnp.where(verdict.until - tick > reached, tick + reached, verdict.until)
    s = jnp.minimum(stages_needed(bound * (until - tick)), solver.max_stages)
    return until, jnp.where(possible, s, MIN_STAGES).astype(int), possible


def _next_stages(lane: Progress, moved: Walk, verdict: Verdict, begins: Flag, f: PyTree) -> Stages:
    """`d_1 = mu~_1 h f_n` where a step begins, the recurrence within one, 0 else."""
    walk, stages, dtype = lane.carried, lane.carried.stages, lane.tick.dtype
    within = (walk.phase == STAGE) & jnp.logical_not(verdict.closed)
    method = Method(jnp.maximum(moved.s, MIN_STAGES), dtype)
    first, later = first_stage(method), later_stage(jnp.maximum(stages.j, MIN_STAGES), method)
    weights = recurrence_weights(later, stages.last, stages.b_before, method, walk.until - lane.tick)
    start = first.c * (moved.until - verdict.tick)

    def newer(newer: Array, older: Array, f: Array, before: Array, here: Array) -> Array:
        mu, nu, mu_tilde, gamma = (weight.astype(f.dtype) for weight in weights)
        stage = mu * newer + nu * older + mu_tilde * f + gamma * before
        return jnp.where(begins, start.astype(f.dtype) * here, jnp.where(within, stage, 0))

    return Stages(
        j=jnp.where(begins, MIN_STAGES, stages.j + _one_if(within)),
        last=_choose(begins, first, _choose(within, later, stages.last)),
        b_before=jnp.where(begins, first.b, jnp.where(within, stages.last.b, stages.b_before)),
        older=jax.tree.map(lambda leaf: jnp.where(within, leaf, 0), stages.newer),
        newer=jax.tree.map(newer, stages.newer, stages.older, f, walk.velocity, moved.velocity),
    )


def _one_if(condition: Flag) -> Count:
    return condition.astype(int)


def _choose(condition: Flag, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
