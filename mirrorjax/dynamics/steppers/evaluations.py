"""RKC for the lanes of a sweep, whose unit of work is one evaluation of the velocity, not one step.

Under vmap a step of `RKC` ends for all lanes together, once the lane with the most stages has taken them: several times
the evaluations that a lane needs. Here each lane is at a stage of its own. A round evaluates the velocity once for
every lane, and each lane uses the value for its next purpose: a stage, the end of its step, a product of the power
iteration, or the velocity after a jump. Products are differences of two velocities, as in the published code, because a
derivative would cost every lane two to three rounds. Not for reverse mode, which a sweep does not need.
"""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...results import RESULTS
from ..guards import Field
from ..integrate import first_step
from ..motion import AbstractMotion, state_dtype
from ..options import Options
from ..solvers.rkc import MAX_PRODUCTS, MIN_STAGES, RKC, has_settled, noise, norm, power_iterate, recurrence_weights
from ..solvers.rkc_coefficients import Method, Stage, first_stage, later_stage, longest, stages_needed
from .base import AbstractStepper, Lane, Prepare, over_lanes
from .saving import save, save_ticks

Scalar = Float[Array, ""]
Flag = Bool[Array, ""]
Count = Int[Array, ""]

# The use of a lane's next velocity: f after a jump; a product of the power iteration; a stage or, after the last one,
# the end of the step. Or no use: the lane is at t1 or out of steps (DONE), or no step can be taken (STUCK).
RENEW, PRODUCT, STAGE, DONE, STUCK = range(5)
# Steps that one product serves. A product for every step costs 15% more evaluations and saves no steps on the
# matrix-sensing sweep; a product every 25 steps, as in the published code, causes more rejected steps.
PRODUCT_EVERY = 4


class Stages(eqx.Module):
    """The stages of the current step: the number j of the next stage, the coefficients of the last one, `b_{j-2}`, and
    the differences `d_{j-2}` and `d_{j-1}`, which are 0 between steps."""

    j: Count
    last: Stage
    b_before: Scalar
    older: PyTree
    newer: PyTree


class Power(eqx.Module):
    """The power iteration: its vector, the estimate of the radius, the number of products made in a row, and their age
    in steps, which is -1 until the estimate has settled, at the start and after a jump."""

    vector: PyTree
    radius: Scalar
    products: Count
    age: Count


class Position(eqx.Module):
    """The stepper's data of a lane, whose `tick` and `state` are those at the start of its current step.

    - `phase`: the use of the next velocity. `until`, `s`: the tick at which the step ends, and its number of stages.
    - `control`: the state of the step-size controller. `velocity`: f at (tick, state).
    """

    phase: Count
    until: Scalar
    s: Count
    control: PyTree
    velocity: PyTree
    stages: Stages
    power: Power


class StepEnd(eqx.Module):
    """The end of a step: `closed` if the step ends in this round, `kept` if its error is small enough, `jumped` if it
    ends at a breakpoint, `stuck` if no smaller step can be taken; and the next `tick`, `until` and `control`."""

    closed: Flag
    kept: Flag
    jumped: Flag
    stuck: Flag
    tick: Scalar
    until: Scalar
    control: PyTree


class RKCStepper(AbstractStepper):
    """RKC by single evaluations. The unit of work is an evaluation of the velocity.

    **Arguments:** `solver`: the RKC solver, for its largest number of stages and its safety factor.
    """

    solver: RKC

    def begin(self, motion: AbstractMotion, options: Options, state: PyTree) -> Position:
        dtype = state_dtype(state)
        start, none = jnp.zeros((), dtype), jnp.array(0)
        until, control = first_step(motion, options, state, motion.clock.ticks(options.t1, dtype))
        zeros = jax.tree.map(jnp.zeros_like, state)
        return Position(
            phase=jnp.array(RENEW),
            until=until,
            s=none,
            control=control,
            velocity=zeros,
            stages=Stages(none, Stage(start, start, start), start, zeros, zeros),
            power=Power(noise(state), start, none, jnp.array(-1)),
        )

    def advance(self, prepare: Prepare, options: Options, values: PyTree, lanes: Lane, work: int) -> Lane:
        """Moves the lanes by so many rounds; lanes that are done or stuck stay as they are."""

        def one_round(_: Count, lanes: Lane) -> Lane:
            f = over_lanes(prepare, _evaluate)(values, lanes)
            ends = over_lanes(prepare, lambda *each: _end_step(options, *each))(values, lanes, f)
            read = partial(_read, options)
            lanes = save(prepare, options, values, ticks, lanes, ends.kept, lanes.carried.until, read, f)
            return over_lanes(prepare, lambda *each: _move_on(self.solver, options, *each))(values, lanes, ends, f)

        ticks = save_ticks(prepare, options, values, lanes)
        return jax.lax.fori_loop(0, work, one_round, lanes)

    def halted(self, motion: AbstractMotion, options: Options, lane: Lane) -> tuple[RESULTS, Flag]:
        phase = lane.carried.phase
        short = (phase == DONE) & (lane.tick < motion.clock.ticks(options.t1, lane.tick.dtype))
        status = RESULTS.where(phase == STUCK, RESULTS.step_size_underflow, RESULTS.successful)
        return RESULTS.where(short, RESULTS.max_steps_reached, status), phase < DONE


def _evaluate(motion: AbstractMotion, lane: Lane) -> PyTree:
    """The velocity at the point that the lane's phase asks for."""
    position, stages = lane.carried, lane.carried.stages
    within = jnp.where(stages.j > position.s, position.until, lane.tick + stages.last.c * (position.until - lane.tick))
    tick = jnp.where(position.phase == STAGE, within, lane.tick)
    reach = jnp.where(position.phase == PRODUCT, _reach(lane), 0)
    y = jax.tree.map(lambda y, d, v: y + d + reach.astype(v.dtype) * v, lane.state, stages.newer, position.power.vector)
    return Field(motion, lane.state).during(lane.tick, position.until).velocity(tick, y)


def _reach(lane: Lane) -> Scalar:
    """The length of the difference that stands for a product: `sqrt(eps) |y|`, right to half of the digits."""
    dtype = lane.tick.dtype
    size = norm(lane.state, dtype)
    return jnp.sqrt(jnp.finfo(dtype).eps) * jnp.where(size > 0, size, 1) / norm(lane.carried.power.vector, dtype)


def _end_step(options: Options, motion: AbstractMotion, lane: Lane, f: PyTree) -> StepEnd:
    """Controls the error of a step by the estimate `0.8 (y_n - y_{n+1}) + 0.4 h (f_n + f_{n+1})`."""
    position, h, dtype = lane.carried, lane.carried.until - lane.tick, lane.tick.dtype
    closed = lane.running & (position.phase == STAGE) & (position.stages.j > position.s)
    t1 = motion.clock.ticks(options.t1, dtype)

    def estimate(d: Array, before: Array, after: Array) -> Array:
        error = 0.4 * h.astype(d.dtype) * (before + after) - 0.8 * d
        # A step far beyond where the velocity overflows: a controller makes of NaN a step size that is NaN for good.
        return jnp.where(jnp.isnan(error), jnp.inf, error)

    kept, tick, until, jumped, control, result = motion.controller(options.rtol, options.atol, dtype).adapt_step_size(
        lane.tick,
        position.until,
        lane.state,
        jax.tree.map(jnp.add, lane.state, position.stages.newer),
        None,
        jax.tree.map(estimate, position.stages.newer, position.velocity, f),
        RKC.ERROR_ORDER,
        position.control,
    )
    return StepEnd(
        closed=closed,
        kept=closed & kept,
        jumped=closed & kept & jumped,
        stuck=closed & (result != diffrax.RESULTS.successful),
        tick=jnp.where(closed, jnp.minimum(tick, t1), lane.tick),  # a breakpoint at t1 would be stepped over
        until=jnp.where(closed, jnp.minimum(until, t1), position.until),
        control=_choose(closed, control, position.control),
    )


def _read(options: Options, motion: AbstractMotion, lane: Lane, f: PyTree, t: Scalar) -> PyTree:
    """The numbers kept at a time within the step that ends now.

    A save time at a breakpoint lies just before the next step begins, so the tick is moved to the step's start.
    """
    position, tick = lane.carried, motion.clock.ticks(t, lane.tick.dtype)
    h = position.until - lane.tick
    slopes = [jax.tree.map(lambda leaf: h.astype(leaf.dtype) * leaf, rate) for rate in (position.velocity, f)]
    end = jax.tree.map(jnp.add, lane.state, position.stages.newer)
    state = diffrax.ThirdOrderHermitePolynomialInterpolation(
        t0=lane.tick, t1=position.until, y0=lane.state, y1=end, k0=slopes[0], k1=slopes[1]
    ).evaluate(jnp.maximum(tick, lane.tick))
    return Field(motion, lane.state).save(options.metrics, tick, state)


def _move_on(solver: RKC, options: Options, motion: AbstractMotion, lane: Lane, ended: StepEnd, f: PyTree) -> Lane:
    """Consumes one velocity evaluation and returns the updated lane."""
    position, closed, kept = lane.carried, ended.closed, ended.kept
    steps = lane.steps + _one_if(closed)
    power = _iterate(lane, ended, f)
    phase = _next_phase(position, ended, power)
    over = closed & ((ended.tick >= motion.clock.ticks(options.t1, lane.tick.dtype)) | (steps >= options.max_steps))
    begins = (phase == STAGE) & (closed | (position.phase == PRODUCT)) & jnp.logical_not(over)
    until, s, possible = _plan(solver, ended, power)
    phase = jnp.where((begins & jnp.logical_not(possible)) | ended.stuck, STUCK, jnp.where(over, DONE, phase))
    here = _choose(kept | (position.phase == RENEW), f, position.velocity)
    moved = Position(
        phase=phase,
        until=jnp.where(begins, until, ended.until),
        s=jnp.where(begins, s, position.s),
        control=ended.control,
        velocity=here,
        stages=position.stages,
        power=power,
    )
    return Lane(
        tick=ended.tick,
        state=_choose(kept, jax.tree.map(jnp.add, lane.state, position.stages.newer), lane.state),
        carried=eqx.tree_at(lambda moved: moved.stages, moved, _next_stages(lane, moved, ended, begins, f)),
        saved=lane.saved,
        metrics=lane.metrics,
        loss=lane.loss,
        steps=steps,
        rejected_steps=lane.rejected_steps + _one_if(closed & jnp.logical_not(kept)),
        work=lane.work + _one_if(position.phase < DONE),
        next_try=lane.next_try,
        running=lane.running,
        result=lane.result,
    )


def _iterate(lane: Lane, ended: StepEnd, f: PyTree) -> Power:
    """Advances the power iteration of a lane whose velocity was for a product."""
    position, power, reach = lane.carried, lane.carried.power, _reach(lane)
    made = position.phase == PRODUCT
    product = jax.tree.map(lambda far, near: (far - near) / reach.astype(far.dtype), f, position.velocity)
    vector, radius = power_iterate(product, power.vector, lane.tick.dtype)
    settled = (power.age >= 0) | has_settled(radius, power.radius) | (power.products + 1 >= MAX_PRODUCTS)
    age = jnp.where(made & settled, 0, power.age + _one_if(ended.closed & (power.age >= 0)))
    return Power(
        vector=_choose(made, vector, power.vector),
        radius=jnp.where(made, radius, power.radius),
        products=jnp.where(made, power.products + 1, 0),
        age=jnp.where(ended.jumped, -1, age),
    )


def _next_phase(position: Position, ended: StepEnd, power: Power) -> Count:
    """The use of the lane's next velocity.

    After a jump f is renewed, then products are made until their estimate of the radius settles. Later a product is
    made every few steps, and after a rejected step, whose cause may be a radius that was out of date.
    """
    rejected = ended.closed & jnp.logical_not(ended.kept)
    outdated = ended.closed & ((power.age >= PRODUCT_EVERY) | (rejected & (power.age > 0)))
    unsettled = (position.phase == RENEW) | ((position.phase == PRODUCT) & (power.age < 0))
    phase = jnp.where(outdated | unsettled, PRODUCT, jnp.where(position.phase < DONE, STAGE, position.phase))
    return jnp.where(ended.jumped, RENEW, phase)


def _plan(solver: RKC, ended: StepEnd, power: Power) -> tuple[Scalar, Count, Flag]:
    """The tick at which the next step ends, its number of stages, and True if the step can be taken.

    A step is no longer than the largest number of stages allows. It cannot be taken where that length does not move t,
    as where the radius is infinite or NaN.
    """
    radius, tick = power.radius, ended.tick
    bound = solver.safety.astype(radius.dtype) * radius
    reached = longest(solver.max_stages) / jnp.maximum(bound, jnp.finfo(radius.dtype).tiny)
    possible = (reached > 4 * jnp.finfo(tick.dtype).eps * tick) & jnp.isfinite(bound)
    until = jnp.where(ended.until - tick > reached, tick + reached, ended.until)
    s = jnp.minimum(stages_needed(bound * (until - tick)), solver.max_stages)
    return until, jnp.where(possible, s, MIN_STAGES).astype(int), possible


def _next_stages(lane: Lane, moved: Position, ended: StepEnd, begins: Flag, f: PyTree) -> Stages:
    """`d_1 = mu~_1 h f_n` where a step begins, the recurrence within one, 0 else."""
    position, stages, dtype = lane.carried, lane.carried.stages, lane.tick.dtype
    within = (position.phase == STAGE) & jnp.logical_not(ended.closed)
    method = Method(jnp.maximum(moved.s, MIN_STAGES), dtype)
    first, later = first_stage(method), later_stage(jnp.maximum(stages.j, MIN_STAGES), method)
    weights = recurrence_weights(later, stages.last, stages.b_before, method, position.until - lane.tick)
    start = first.c * (moved.until - ended.tick)

    def newer(newer: Array, older: Array, f: Array, before: Array, here: Array) -> Array:
        mu, nu, mu_tilde, gamma = (weight.astype(f.dtype) for weight in weights)
        stage = mu * newer + nu * older + mu_tilde * f + gamma * before
        return jnp.where(begins, start.astype(f.dtype) * here, jnp.where(within, stage, 0))

    return Stages(
        j=jnp.where(begins, MIN_STAGES, stages.j + _one_if(within)),
        last=_choose(begins, first, _choose(within, later, stages.last)),
        b_before=jnp.where(begins, first.b, jnp.where(within, stages.last.b, stages.b_before)),
        older=jax.tree.map(lambda leaf: jnp.where(within, leaf, 0), stages.newer),
        newer=jax.tree.map(newer, stages.newer, stages.older, f, position.velocity, moved.velocity),
    )


def _one_if(condition: Flag) -> Count:
    return condition.astype(int)


def _choose(condition: Flag, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
