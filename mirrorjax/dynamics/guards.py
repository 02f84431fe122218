"""A motion as solvers call it: its velocity and read-out on the solver's clock, with values and derivatives guarded.

Solvers call both at states that are thrown away afterwards: trial steps that leave the domain, and extrapolations that
overflow. In reverse mode the derivative of a discarded number is multiplied by 0, and 0 * NaN would spoil the gradient
of the whole solution.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree
from typing_extensions import TypeAliasType

from ..calls import calling, require_numbers
from .motion import AbstractMotion, state_dtype
from .pieces import OnPiece, Piece
from .solution import Point

Tick = Float[Array, ""]
Metrics = TypeAliasType("Metrics", Callable[[Float[Array, ""], Float[Array, "..."], PyTree], PyTree])
"""A function of `(t, x, w)` at one point of a trajectory; returns a pytree of numbers."""


class Layout(eqx.Module):
    """The order in which the leaves of a state lie in one vector for each of their dtypes.

    A solver does each of its operations once for each leaf of a state, and each is compiled as a kernel of its own: a
    state of one leaf compiles in half of the time of one with four.

    **Arguments:** `state`: a state, or its shapes.
    """

    structure: Any = eqx.field(static=True)  # static: the pytree of the state
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)  # static: shapes of its leaves
    dtypes: tuple[Any, ...] = eqx.field(static=True)  # static: dtypes of its leaves

    def __init__(self, state: PyTree):
        leaves, self.structure = jax.tree.flatten(state)
        self.shapes, self.dtypes = tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype for leaf in leaves)

    def pack(self, state: PyTree) -> list[Float[Array, " numbers"]]:
        """The numbers of a state, or of a velocity, which has the structure of one."""
        leaves = jax.tree.leaves(state)
        parts = [
            [x.ravel() for x, own in zip(leaves, self.dtypes, strict=True) if own == dtype] for dtype in self._kinds
        ]
        return [part[0] if len(part) == 1 else jnp.concatenate(part) for part in parts]

    def unpack(self, packed: list[Float[Array, " numbers"]]) -> PyTree:
        """The state of these numbers."""
        parts: dict[Any, Any] = {}
        for dtype, numbers in zip(self._kinds, packed, strict=True):
            sizes = [math.prod(shape) for shape, own in zip(self.shapes, self.dtypes, strict=True) if own == dtype]
            # Its derivative in reverse mode packs, where that of slices adds up as many vectors as there are leaves.
            parts[dtype] = iter(jax.lax.split(numbers, sizes))
        leaves = [next(parts[dtype]).reshape(shape) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def _kinds(self) -> list[Any]:
        return list(dict.fromkeys(self.dtypes))


class Field(eqx.Module):
    """The right-hand side of a solve: a motion and an `anchor`, a state at which its velocity is defined.

    An instance is the `args` of the diffrax solve. `piece` is the piece of the schedule on which the velocity is
    evaluated; `None`: that of each time. `layout` is that of the states which it is called with; `None`: they are not
    packed.
    """

    motion: AbstractMotion
    anchor: PyTree
    piece: Piece | None = None
    layout: Layout | None = None

    @staticmethod
    def packed(motion: AbstractMotion, state: PyTree) -> "Field":
        """The field of a motion for packed states. States of one leaf need none, and those of descents are left as
        they are, because their solver knows them."""
        if len(jax.tree.leaves(state)) == 1 or motion.clock.fixed_step(state_dtype(state)) is not None:
            return Field(motion, state)
        layout = Layout(state)
        return Field(motion, layout.pack(state), None, layout)

    def pack(self, state: PyTree) -> PyTree:
        return state if self.layout is None else self.layout.pack(state)

    def unpack(self, y: PyTree) -> PyTree:
        return y if self.layout is None else self.layout.unpack(y)

    def during(self, start: Tick, end: Tick) -> "Field":
        """This field in a step between two ticks: it sees the piece of the schedule that the step lies in."""
        schedule = self.motion.problem.schedule
        if not schedule.breakpoints.size:
            return self
        piece = Piece(schedule, self.motion.clock.time(start + (end - start) / 2))
        return Field(self.motion, self.anchor, piece, self.layout)

    def velocity(self, tick: Tick, y: PyTree) -> PyTree:
        """The velocity at a tick; huge where it overflows or is undefined, with derivative 0 there.

        A trial step that is too long may leave the domain. Its error estimate is huge then, so the step is rejected.
        """
        return _velocity(tick, y, self)

    def save(self, metrics: Metrics | None, tick: Tick, y: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """The numbers kept at a save time: the metrics, or the whole point, and the loss."""
        return read_out(self.motion, metrics, self.motion.clock.time(tick), self.unpack(y))


def read_out(motion: AbstractMotion, metrics: Metrics | None, t: Tick, y: PyTree) -> tuple[PyTree, Float[Array, ""]]:
    """The metrics of a state at time t, or the whole point, and the loss; derivative 0 where they are not finite."""
    arrays, static = eqx.partition((motion, t, y), eqx.is_array)
    motion, t, y = eqx.combine(_identity_where_finite(arrays, static), static)
    point = motion.read(t, y)
    return (point if metrics is None else as_numbers(metrics, t, point)), point.loss


# A compiled function, so that it is traced once: a solve calls it in a dozen places.
@eqx.filter_jit
def _velocity(tick: Tick, y: PyTree, field: Field) -> PyTree:
    return _guarded_velocity(tick, y, field)


def as_numbers(metrics: Metrics, t: Float[Array, ""], point: Point) -> PyTree:
    """The metrics at a point of a trajectory, as floating-point arrays."""
    with calling("metrics"):
        kept = metrics(t, point.x, point.w)
    require_numbers(kept, "metrics")
    return jax.tree.map(_as_float, kept)


def vector_field(tick: Any, y: PyTree, args: Any) -> PyTree:
    """`Field.velocity` with the signature that `diffrax.ODETerm` wants; `args` is a `Field`."""
    return args.velocity(tick, y)


@eqx.filter_jit  # traced once, though a step has a call for each stage
def unguarded_field(tick: Any, y: PyTree, args: Any) -> PyTree:
    """As `vector_field`, for steps that nothing differentiates and whose error is not finite where a velocity is not:
    two passes over the velocity less for every stage."""
    return _raw_velocity(tick, y, args)


def _raw_velocity(tick: Tick, y: PyTree, field: Field) -> PyTree:
    motion, piece = field.motion, field.piece
    if piece is not None:
        motion = eqx.tree_at(lambda motion: motion.problem.schedule, motion, replace_fn=lambda old: OnPiece(old, piece))
    return field.pack(motion.velocity(motion.clock.time(tick), field.unpack(y)))


@eqx.filter_custom_jvp
def _guarded_velocity(tick: Tick, y: PyTree, field: Field) -> PyTree:
    return _bounded(_raw_velocity(tick, y, field))[0]


@_guarded_velocity.def_jvp
def _guarded_velocity_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    tick, y, field = primals
    rate, ok = _bounded(_raw_velocity(tick, y, field))
    inside = jax.tree.map(lambda leaf, anchor: jnp.where(ok, leaf, anchor), y, field.anchor)
    _, slope = eqx.filter_jvp(_raw_velocity, (tick, inside, field), tangents)
    return rate, jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)), slope)


def _bounded(rate: PyTree) -> tuple[PyTree, Bool[Array, ""]]:
    """A velocity with finite entries, and True if it was finite before."""
    # The largest entry is NaN where any entry is; a CPU finds it in half the time of `all(isfinite)`.
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(rate)]
    ok = jnp.all(jnp.stack([jnp.isfinite(size) for size in largest]))
    return jax.tree.map(lambda leaf: jnp.where(ok, leaf, float(jnp.finfo(leaf.dtype).max) ** 0.4), rate), ok


@eqx.filter_custom_jvp
def _identity_where_finite(arrays: PyTree, static: PyTree) -> PyTree:
    """Identity whose derivative is zero where the read-out is not finite.

    Under vmap diffrax saves for all lanes when one of them is at a save time. The values it extrapolates to for the
    others are discarded, but they may overflow.
    """
    return arrays


@_identity_where_finite.def_jvp
def _identity_where_finite_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    arrays, static = primals
    motion, t, y = eqx.combine(arrays, static)
    point: Point = motion.read(t, y)
    ok = point.is_finite()
    return arrays, jax.tree.map(lambda slope: jnp.where(ok, slope, jnp.zeros_like(slope)), tangents[0])


@eqx.filter_custom_jvp
def never_reached(inputs: PyTree) -> Float[Array, ""]:
    """NaN, for a value that a solve never reached. Its derivative in each of the inputs is NaN too.

    Without it the derivative of a failed solve would be 0, which an optimizer takes for a stationary point. A value
    that nothing depends on, such as the loss of a failed lane that `jnp.where` leaves out of a sum, adds no NaN to the
    derivatives of others.
    """
    # Made of the inputs, so that under vmap the value has the axes that its derivative has: a constant has none, which
    # JAX takes for a mismatch inside jit.
    some = [leaf.ravel()[:1].astype(float) for leaf in jax.tree.leaves(inputs) if eqx.is_inexact_array(leaf)]
    # A product, which is computed once: a sum would be compiled into each use of it.
    numbers = jnp.concatenate(some)
    return jnp.nan * (numbers @ jnp.zeros(numbers.size))


@never_reached.def_jvp
def _never_reached_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    def nan_unless_zero(_: Any, slope: Array) -> Array:
        return jnp.where(slope == 0, 0.0, jnp.nan).astype(slope.dtype)

    # NaN times a slope would be NaN also where the slope is 0, and a rule that looks at the slope is not linear to JAX,
    # which could not transpose it. It does not look into this solve: the transpose is the same function.
    slope = _sum(jax.tree.leaves(tangents))
    return never_reached(*primals), jax.lax.custom_linear_solve(lambda v: v, slope, nan_unless_zero, symmetric=True)


def _sum(leaves: list[Array]) -> Float[Array, ""]:
    """The sum of the entries of all leaves."""
    return sum((jnp.sum(leaf).astype(float) for leaf in leaves), jnp.zeros(()))


def _as_float(leaf: ArrayLike) -> Array:
    """Converts whole numbers and booleans to floating point, where NaN can say that a value is missing."""
    array = jnp.asarray(leaf)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)
