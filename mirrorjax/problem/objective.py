"""f(x): the objectives. `AbstractMeasured` are those that depend on x only through linear measurements Z x."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks import as_float, finite, is_concrete, on_host, refuted
from ..reprs import readable
from .functions import call, capture, check_scalar, require_function

Shape = tuple[int, ...]


class AbstractObjective(eqx.Module):
    """`f(x)`, a differentiable scalar function of the parameters.

    A subclass gives `__call__` and `check`, and overrides `gradient` if it has a faster way than autodiff.
    """

    def __repr__(self) -> str:
        return readable(self)

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, ""]:
        """`f(x)`."""

    @abc.abstractmethod
    def check(self, x: jax.ShapeDtypeStruct) -> None:
        """Raises `ValueError` if f does not accept parameters of this shape and dtype."""

    def capture(self, x: jax.ShapeDtypeStruct) -> "AbstractObjective":
        """This objective, with the traced numbers that a user's function in it closes over as leaves."""
        return self

    def gradient(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`grad f(x)`, shaped like x."""
        return jax.grad(self.__call__)(x)


class AbstractMeasured(AbstractObjective):
    """`f(x) = loss(Z x)`: an objective that depends on x only through n linear measurements `z = Z x`.

    For these the limit of the flow is known without integrating (`predict_limit`), since grad R(x) lies in range(Z^T).
    `__call__` and `gradient` (`Z^T loss'(Z x)`) are given by this class; a subclass gives:

    - `y` (n,): the targets, a field.
    - `measure(x)`: `Z x`, linear in x, and `adjoint(r)`: `Z^T r`, its transpose: `<r, Z x> = <Z^T r, x>`.
    - `loss(z)`: f as a function of the measurements, and `slope(z)`: its gradient. `predict_limit` needs f to be convex
      in z with its minimum at `z = y`.
    - `check(x)`: raises `ValueError` if x has another shape or dtype than Z takes.

    Source: the paper's Theorem 3.11.
    """

    y: eqx.AbstractVar[Float[Array, " n"]]

    @abc.abstractmethod
    def measure(self, x: Float[Array, "..."]) -> Float[Array, " n"]:
        """`Z x`."""

    @abc.abstractmethod
    def adjoint(self, r: Float[Array, " n"]) -> Float[Array, "..."]:
        """`Z^T r`, shaped like x."""

    @abc.abstractmethod
    def loss(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        """f as a function of the measurements."""

    @abc.abstractmethod
    def slope(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        """`d loss / d z`."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, ""]:
        return self.loss(self.measure(x))

    def gradient(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.adjoint(self.slope(self.measure(x)))


def _data(Z: ArrayLike, y: ArrayLike, name: str, axes: str) -> tuple[Float[Array, "n ..."], Float[Array, " n"]]:
    """Measurements and targets as arrays. Raises `ValueError` for those that do not fit, or a Z without these axes."""
    Z, y = as_float(Z, name), as_float(y, "y")
    if y.ndim != 1 or Z.ndim < 2 or Z.shape[0] != y.shape[0] or y.size == 0:
        raise ValueError(f"{name} and y must share their first, non-empty axis, got shapes {Z.shape} and {y.shape}")
    if Z.dtype != y.dtype:
        raise ValueError(f"{name} and y must have one dtype, got {Z.dtype} and {y.dtype}")
    for array, label in ((Z, name), (y, "y")):
        if refuted(lambda array=array: finite(on_host(array)), array):
            raise ValueError(
                f"{label} holds NaN or infinite entries: {int(np.sum(~np.isfinite(np.asarray(array))))} of them"
            )
    if Z.ndim != len(axes.split(",")):
        raise ValueError(f"{name} must have shape ({axes}), got {Z.shape}")
    return Z, y


def _require_x(objective: AbstractMeasured, x: jax.ShapeDtypeStruct, shape: Shape) -> None:
    """Raises `ValueError` if x has another shape, or another dtype than the data."""
    owner, dtype = type(objective).__name__, objective.y.dtype
    if x.shape != shape:
        raise ValueError(f"{owner} is built for x of shape {shape}, but g gives x of shape {x.shape}")
    if x.dtype != dtype:
        raise ValueError(
            f"{owner} holds {dtype} data, but g gives x in {x.dtype}: cast the data or the weights, so that they agree"
        )


class _AbstractDesign(AbstractMeasured):
    """The measurements `Z x` of a vector x by a matrix Z (n, d)."""

    Z: eqx.AbstractVar[Float[Array, "n d"]]

    def measure(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        return self.Z @ x

    def adjoint(self, r: Float[Array, " n"]) -> Float[Array, " d"]:
        return self.Z.T @ r

    def check(self, x: jax.ShapeDtypeStruct) -> None:
        _require_x(self, x, self.Z.shape[1:])


def _half_mean_square(residual: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.sum(residual**2) / (2 * residual.size)


class LeastSquares(_AbstractDesign):
    """`f(x) = |Z x - y|^2 / (2n)`.

    **Arguments:** `Z` (n, d): the design; `y` (n,): the targets.
    **Raises:** `ValueError` if sizes or dtypes disagree or an entry is not finite.
    """

    Z: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __init__(self, Z: ArrayLike, y: ArrayLike):
        self.Z, self.y = _data(Z, y, "Z", "n, d")

    def loss(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return _half_mean_square(z - self.y)

    def slope(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        return (z - self.y) / self.y.size


class Logistic(_AbstractDesign):
    """`f(x) = 1/n sum log(1 + exp(-y_i (Z x)_i))`.

    **Arguments:** `Z` (n, d): the design; `y` (n,): labels -1 and +1.
    **Raises:** `ValueError` if sizes or dtypes disagree, an entry is not finite, or a label is neither -1 nor +1.
    """

    Z: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __init__(self, Z: ArrayLike, y: ArrayLike):
        self.Z, self.y = _data(Z, y, "Z", "n, d")
        if refuted(lambda: np.all(np.abs(np.asarray(self.y)) == 1), self.y):
            raise ValueError(f"labels must be -1 or +1, got the values {np.unique(np.asarray(self.y))[:5]}")

    def loss(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.mean(jnp.logaddexp(0.0, -self.y * z))

    def slope(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        return -self.y * jax.nn.sigmoid(-self.y * z) / self.y.size


class MatrixSensing(AbstractMeasured):
    """`f(X) = sum_i (<A_i, X> - y_i)^2 / (2m)`, `<A, X> = sum_jk A_jk X_jk`.

    Symmetric A_i are kept as their upper triangles, n(n+1)/2 numbers each instead of n^2, and neither they nor the
    products are ever unpacked: under vmap the work is one (m x n(n+1)/2) matrix product for all lanes.

    **Arguments:** `A` (m, n1, n2): the sensing matrices; `y` (m,): the measurements; `symmetric`: True if all A_i are
    symmetric; `None` compares their entries, and keeps a traced A whole, whose entries are not known.
    **Raises:** `ValueError` if sizes or dtypes disagree, an entry is not finite, or A is not symmetric as claimed.

    Source: the paper's section 5, Eq. (16).
    """

    features: Float[Array, "m p"]
    y: Float[Array, " m"]
    shape: Shape = eqx.field(static=True)  # static: the shape of x
    symmetric: bool = eqx.field(static=True)  # static: decides how features are laid out

    def __init__(self, A: ArrayLike, y: ArrayLike, symmetric: bool | None = None):
        if symmetric is not None and not isinstance(symmetric, bool | np.bool_):
            raise ValueError(f"symmetric must be True, False or None, got {symmetric!r}")
        A, self.y = _data(A, y, "A", "m, n1, n2")
        self.shape = A.shape[1:]
        looks_symmetric = _is_symmetric(A)
        if symmetric and looks_symmetric is False:
            raise ValueError("A was said to be symmetric and is not; pass (A + A^T) / 2 or symmetric=False")
        self.symmetric = bool(looks_symmetric) if symmetric is None else bool(symmetric)
        self.features = _triangles(A) if self.symmetric else A.reshape(A.shape[0], -1)

    def measure(self, x: Float[Array, "n1 n2"]) -> Float[Array, " m"]:
        if not self.symmetric:
            return self.features @ x.reshape(-1)
        rows, columns = np.triu_indices(self.shape[0])
        # <A, X> = sum_{j<=k} A_jk (X_jk + X_kj), with the diagonal counted once. Indexing the flat X, and multiplying
        # from the left, lets XLA compile a batch of lanes to one fast matrix product on a CPU: a third of the time.
        flat, once = x.reshape(-1), jnp.asarray(np.where(rows == columns, 0.5, 1.0), x.dtype)
        twice = (
            flat[np.ravel_multi_index((rows, columns), x.shape)] + flat[np.ravel_multi_index((columns, rows), x.shape)]
        )
        return (once * twice) @ self.features.T

    def adjoint(self, r: Float[Array, " m"]) -> Float[Array, "n1 n2"]:
        packed = r @ self.features
        if not self.symmetric:
            return packed.reshape(self.shape)
        return packed[_triangle_index(self.shape[0])]

    def loss(self, z: Float[Array, " m"]) -> Float[Array, ""]:
        return _half_mean_square(z - self.y)

    def slope(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        return (z - self.y) / self.y.size

    def check(self, x: jax.ShapeDtypeStruct) -> None:
        _require_x(self, x, self.shape)


def _is_symmetric(A: Float[Array, "m n1 n2"]) -> bool | None:
    """True if all matrices are symmetric; `None` if they are traced, so that their entries are not known."""
    if A.shape[1] != A.shape[2]:
        return False
    if not is_concrete(A):
        return None
    return not refuted(lambda: np.array_equal(np.swapaxes(A, 1, 2), A), A)


def _triangles(A: Float[Array, "m n n"]) -> Float[Array, "m p"]:
    """The upper triangles; of known matrices that are bound to no device by NumPy, which compiles nothing."""
    rows, columns = np.triu_indices(A.shape[1])
    known = A if is_concrete(A) and A.committed else on_host(A)
    picked = known[:, rows, columns]
    return as_float(picked, "A") if isinstance(picked, np.ndarray) else picked


def _triangle_index(n: int) -> np.ndarray:
    """(n, n) positions of the entries (j, k) and (k, j) in the packed upper triangle."""
    rows, columns = np.triu_indices(n)
    index = np.empty((n, n), dtype=np.int32)
    index[rows, columns] = index[columns, rows] = np.arange(rows.size)
    return index


class CustomObjective(AbstractObjective):
    """`f(x) = fn(x)` for any differentiable scalar function of the parameters.

    **Arguments:** `fn`: x -> scalar.
    **Raises:** `ValueError` if fn is no function of one argument or does not return one scalar.
    """

    fn: Callable

    def __check_init__(self):
        require_function(self.fn, "CustomObjective", "x")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, ""]:
        return call(self.fn, "CustomObjective", x)

    def check(self, x: jax.ShapeDtypeStruct) -> None:
        check_scalar(self.fn, x, "CustomObjective")

    def capture(self, x: jax.ShapeDtypeStruct) -> "CustomObjective":
        return CustomObjective(capture(self.fn, "CustomObjective", x))
