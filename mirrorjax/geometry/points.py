"""Arguments of R_a: the points x and mu, the strength a and the weights, converted and checked once for all families.

Known numbers are refused with a `ValueError`. Traced numbers get a status, or NaN where a method has no status, and
cost a few operations.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import Numbers, as_float, is_concrete, require_kind
from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import RESULTS, first_failure, require_success

if TYPE_CHECKING:
    from .base import AbstractLegendre

Point = Float[Array, "..."]
Strength = float | Float[Array, "..."]  # a scalar, or for separable families an array shaped like x


def compiled(fn: Callable) -> Callable:
    """`eqx.filter_jit(fn)`; inlined, so that in a program of the user's it is no call."""
    options: dict[str, Any] = {"inline": True}  # of jax.jit, which equinox's overloads leave out
    return eqx.filter_jit(fn, **options)


class Recovered(eqx.Module):
    """A map evaluated point by point: `value`, NaN where there is none, and `result`, the reason, for each point.

    For separable families `result` is shaped like the value, one status a coordinate; otherwise it is one scalar.
    """

    value: Float[Array, "..."]
    result: RESULTS

    @property
    def ok(self) -> Array:
        """Boolean, shaped like `result`."""
        return self.result == RESULTS.successful


def as_point(value: Numbers, like: jax.ShapeDtypeStruct, name: str) -> Point:
    """Converts `value` to an array of the shape and dtype of `like`.

    Integers and Python numbers take the dtype of `like`, and so does an array of a shorter float type. Raises
    `ValueError`, with the name, for anything not real numbers, for another shape, and for an array of a longer float
    type, whose digits would be lost.
    """
    if isinstance(value, jax.Array) and value.shape == like.shape and value.dtype == like.dtype:
        return value
    point = as_float(value, name)
    if point.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape {like.shape} of g(w0), got shape {point.shape}; use jax.vmap for several "
            "points"
        )
    given = getattr(value, "dtype", like.dtype)
    if jnp.issubdtype(given, jnp.floating) and jnp.finfo(point.dtype).nmant > jnp.finfo(like.dtype).nmant:
        raise ValueError(
            f"{name} has dtype {point.dtype} and R has dtype {like.dtype}; build R from weights in {point.dtype}, or "
            f"convert {name} to {like.dtype}"
        )
    return point.astype(like.dtype)


def shape_of(point: Point) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a point."""
    return jax.ShapeDtypeStruct(point.shape, point.dtype)


def require_pair(g: Any, h: Any) -> None:
    """Raises `ValueError` unless g is a reparameterization and h a regularizer."""
    require_kind(g, AbstractReparameterization, "g", "a reparameterization such as Hadamard(), or Custom(fn)")
    require_kind(h, AbstractRegularizer, "h", "a regularizer such as WeightDecay(), or CustomRegularizer(fn)")


def as_finite_weights(w: Weights, name: str = "w0") -> Weights:
    """Converts every leaf to an array. Raises `ValueError` where a known entry is NaN or infinite, or there is none."""
    w = as_weights(w)
    paths = jax.tree_util.tree_leaves_with_path(w)
    if not sum(leaf.size for _, leaf in paths):
        raise ValueError(f"{name} must hold weights, got {w!r}")
    for path, leaf in paths:
        if is_concrete(leaf) and not np.all(np.isfinite(known := np.asarray(leaf))):
            place = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name} must be finite, got {_entries(known, ~np.isfinite(known), place)}")
    return w


def as_strength(a: Numbers, R: "AbstractLegendre | None" = None) -> Strength:
    """Converts the accumulated regularization: a scalar, or for a separable R an array of one number a coordinate.

    Raises `ValueError` for a scalar that is not finite and <= 0, for an array with an entry that is not finite, for one
    of another shape than x, and for any array where R is not separable or not given. An array is read off weights, and
    may hold positive entries: finite steps and noise can raise what decay only lowers.

    A Python number stays one, so that it takes the precision of the arrays it meets. A traced a is checked by
    `at_strength`.
    """
    if isinstance(a, float):
        if not (math.isfinite(a) and a <= 0):
            _refuse_strength(a)
        return float(a)
    array = as_float(a, "a")
    if array.ndim:
        _require_a_coordinate(array, R)
    require_strengths(array)
    return float(a) if isinstance(a, int) else array


def _require_a_coordinate(a: Float[Array, "..."], R: "AbstractLegendre | None") -> None:
    """Raises `ValueError` unless R takes an array of the shape of a."""
    several = "use jax.vmap for several strengths"
    if R is None:
        raise ValueError(f"a must be a scalar, got shape {a.shape}; {several}")
    if not R.separable:
        raise ValueError(
            f"a must be a scalar, got shape {a.shape}: {type(R).__name__} is not a sum over coordinates, so it takes "
            f"no array of strengths; {several}"
        )
    if a.shape != (shape := R.point_like().shape):
        raise ValueError(
            f"a must be a scalar, or one number a coordinate in the shape {shape} of x, got shape {a.shape}; {several}"
        )


def require_strengths(a: Float[Array, "..."], *, axes: int = 0) -> None:
    """Raises `ValueError` for a known scalar that is not finite and <= 0, and a known array that is not finite.

    **Arguments:** `axes`: how many leading axes of a count strengths rather than coordinates.
    """
    if is_concrete(a):
        known = np.asarray(a)  # numpy: microseconds, also under an outer jit
        bad = ~np.isfinite(known)
        if known.ndim > axes:
            if np.any(bad):
                raise ValueError(f"a must be finite, got {_entries(known, bad, 'a')}")
        elif np.any(bad | (known > 0)):
            _refuse_strength(known)


def _refuse_strength(a: Any) -> NoReturn:
    raise ValueError(f"a must be finite and a <= 0, minus the regularization spent (a_t = -int_0^t alpha), got {a}")


def valid_strength(a: Strength) -> Bool[Array, "..."]:
    """True where a is finite, and <= 0 if it is a scalar; works under tracing."""
    a = jnp.asarray(a)
    return jnp.isfinite(a) if a.ndim else jnp.isfinite(a) & (a <= 0)


def at_strength(fn: Callable[[Any], Any], a: Strength) -> Any:
    """Evaluates `fn(a)`; at a traced a that is not valid every float is NaN.

    The result of a `Recovered` is `invalid_strength` there. Of an array, an entry that is not finite spoils its own
    coordinate, and all outputs that are not shaped like it.
    """
    if is_concrete(a):
        return fn(a)
    valid = valid_strength(a)
    out = fn(jnp.where(valid, a, 0.0))

    def kept(leaf: Array | np.ndarray, other: Any) -> Array:
        good = valid if leaf.shape == valid.shape else jnp.all(valid)
        return jnp.where(good, leaf, jnp.asarray(other, leaf.dtype))  # leaf: of NumPy where it is a known status

    if isinstance(out, Recovered):
        result = jax.tree.map(lambda code, bad: kept(code, bad), out.result, RESULTS.invalid_strength)
        return Recovered(kept(out.value, jnp.nan), result)
    return jax.tree.map(lambda leaf: kept(leaf, jnp.nan), out)


def require_ok(value: Point, result: RESULTS, point: Point, name: str) -> Point:
    """Returns the value, and raises, naming the first entry of the point that failed.

    Raises `ValueError` for a known point that is not finite and `RuntimeError` for any other failure. Under jit and
    vmap the error is raised at run time, with the advice of the status alone.
    """
    failed = result != RESULTS.successful
    if not is_concrete(failed, point):
        return _require_success(value, result)
    bad = np.asarray(failed)
    if np.any(bad):
        known = np.asarray(point)
        if not np.all(np.isfinite(known)):
            raise ValueError(f"{name} must be finite, got {_entries(known, ~np.isfinite(known), name)}")
        raise RuntimeError(f"{RESULTS[_failure_of_a_point(result)]} ({_entries(known, bad, name)})")
    return value


@compiled  # one program where a gradient or a vmap runs without an outer jit
def _require_success(value: Point, result: RESULTS) -> Point:
    return require_success(value, _failure_of_a_point(result))


def _failure_of_a_point(result: RESULTS) -> RESULTS:
    """The first failure; `overflow` in place of `diverged`, whose advice is about flows."""
    failure = first_failure(result)
    return RESULTS.where(failure == RESULTS.diverged, RESULTS.overflow, failure)


def _entries(known: np.ndarray, bad: np.ndarray, name: str) -> str:
    """The first bad entry in words, and the number of others; all of a small point with a single status."""
    if known.ndim == 0 or bad.shape != known.shape:
        return f"{name} = {np.array2string(known, threshold=8, precision=6)}"
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    others = int(np.sum(bad)) - 1
    more = f", and {others} more" if others else ""
    return f"{name}[{', '.join(map(str, first))}] = {known[first]}{more}"
