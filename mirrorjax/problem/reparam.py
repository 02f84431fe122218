"""x = g(w): the abstract class of all reparameterizations, the checks they share, and `Custom`.

A reparameterization is a pure function of one point. Beside its value it states facts about itself, which the rest of
the package reads instead of testing its class. `degree`, the degree of positive homogeneity g(r w) = r^degree
g(w), lets the flow be integrated on a logarithmic scale where tiny weights keep all their digits; `elementwise` says
that each coordinate has a scale of its own.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree
from typing_extensions import TypeAliasType

from ..checks import is_count, refuted
from .functions import call, capture, output_shape, require_function
from .of_weights import AbstractOfWeights

Weights = TypeAliasType("Weights", PyTree[Float[Array, "..."]])
"""Weights w: a pytree of floating-point arrays, such as a tuple of factors or a lone array."""


class Admission(NamedTuple):
    """The condition under which `Compatible(g)` gives an R_a, and the theorem that says so."""

    condition: str
    source: str


class AbstractReparameterization(AbstractOfWeights):
    """`x = g(w)`, a smooth map from weights (a pytree) to parameters (one array).

    A subclass must give `__call__`, `degree`, `elementwise` and `check`. The other methods are facts that a family may
    state about itself; their defaults say that nothing is known.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3.
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Names of this family for `mirrorjax explain`, each with the arguments that build it."""

    @abc.abstractmethod
    def __call__(self, w: Weights) -> Float[Array, "..."]:
        """`g(w)`."""

    @abc.abstractmethod
    def check(self, w: PyTree) -> None:
        """Raises `ValueError` naming what is wrong when w is not a point that g accepts."""

    @property
    def is_difference(self) -> bool:
        """True if `x = g_u(u) - g_v(v)` elementwise, so that `mirrorjax.check` can measure a Wronskian."""
        return False

    @property
    def compatible_is_squares(self) -> bool:
        """True if `compatible(w)` is the sum of squares of all weights, so that weight decay is compatible with g."""
        return False

    @property
    def bounded_sublevels(self) -> bool | None:
        """True if the sets {y: D_a(x, y) <= c} are bounded, Definition 3.7 (ii); `None` where it is not known.

        It holds where Q_a becomes infinite at every finite end of the dual interval, or the interval has none.
        """
        return None

    @property
    def smooth_everywhere(self) -> bool | None:
        """True if g is smooth at all weights, so that flows along grad g_i end only where weights become infinite.

        `False` if they may leave the domain of g in a finite time, at finite weights; `None` where it is not known.
        """
        return None

    @property
    def quadratic_forms(self) -> Float[Array, "d D D"] | None:
        """The symmetric matrices of `x_i = w^T G_i w / 2`; `None` where g does not hold such matrices."""
        return None

    def compatible(self, w: Weights) -> Float[Array, ""]:
        """The regularizer h(w), at scale 1, that commutes with g. Raises `ValueError` where the theory names none."""
        raise ValueError(
            f"{type(self).__name__} has no regularizer of the form of Corollary 3.12; "
            "use WeightDecay, QuadraticForm or CustomRegularizer"
        )

    def admission(self) -> Admission:
        """When `Compatible(self)` gives an R_a. Raises `ValueError`, saying why, where the theory names no h."""
        raise ValueError(
            f"the theory names no regularizer for {type(self).__name__}; write the h you mean and ask "
            "mirrorjax.check(g, h, w)"
        )

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        """Weights with `g(w) = x`; `balance` > 0 picks one choice of many. Raises `ValueError` where there is no rule.

        See `mirrorjax.nn.initial_weights` for what `balance` means in each family.
        """
        raise ValueError(
            f"{type(self).__name__} has no rule for weights that give a tensor; hand one over, "
            "Factored(g, initial=lambda x: w) with g(w) = x"
        )

    def capture(self, w: PyTree) -> "AbstractReparameterization":
        """This reparameterization, with the traced numbers that a user's function in it closes over as leaves.

        `mirrorjax.solve` asks for it before it compiles. The weights w are an example: shapes and dtypes are kept.
        """
        return self

    def notes(self) -> tuple[str, ...]:
        """Sentences of the theory about g that `mirrorjax.check` prints beside its numbers."""
        return ()

    def advice(self) -> str:
        """A sentence for the error of `mirrorjax.legendre` where no R_a exists, such as another class to use."""
        return ""

    def pull(self, w: Weights, v: Float[Array, "..."]) -> Weights:
        """`J^T v = grad <v, g>(w)` for v shaped like x."""
        return jax.vjp(self, w)[1](v)[0]

    def push(self, w: Weights, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """`J J^T v` at w, for v shaped like x."""
        return jax.jvp(self, (w,), (self.pull(w, v),))[1]

    def metric(self, w: Weights) -> Float[Array, "n n"]:
        """`J J^T` at w as a dense matrix over the n entries of x."""
        x = self(w)
        basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
        return jax.vmap(lambda v: self.push(w, v))(basis).reshape(x.size, x.size)


def check_factors(w: Any, n: int, family: str, names: str) -> tuple[Array, ...]:
    """Returns the n factors of w as arrays. Raises `ValueError`, naming the family and what it expects, otherwise."""
    expected = f"{family} takes weights {names}"
    if n == 1:
        factors = (w,)
    elif isinstance(w, tuple | list) and len(w) == n:
        factors = tuple(w)
    else:
        got = f"{type(w).__name__} of length {len(w)}" if isinstance(w, tuple | list) else _kind(w)
        raise ValueError(f"{expected}: a tuple of {n} arrays, got {got}")
    for factor in factors:
        if not eqx.is_array(factor):
            raise ValueError(f"{expected}: arrays, got {type(factor).__name__}")
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            raise ValueError(f"{expected} in floating point, got dtype {factor.dtype}; cast them, e.g. to float")
    if len({factor.dtype for factor in factors}) > 1:
        raise ValueError(f"{expected} of one dtype, got {', '.join(str(factor.dtype) for factor in factors)}")
    return factors


def _kind(w: Any) -> str:
    return f"one array of shape {w.shape}" if eqx.is_array(w) else type(w).__name__


def check_same_shape(factors: tuple[Array, ...], family: str) -> None:
    """Refuses factors of an elementwise family whose shapes differ: broadcasting would change the flow."""
    if len({factor.shape for factor in factors}) > 1:
        shapes = ", ".join(str(factor.shape) for factor in factors)
        raise ValueError(f"{family} multiplies or subtracts coordinate by coordinate: shapes must agree, got {shapes}")


def check_degree(fn: Callable, w: PyTree, degree: int | None, owner: str) -> None:
    """Refuses a claimed degree p unless `fn(w) = 2^p fn(w / 2)`: the flow follows the scale of w by that degree."""
    if degree is None:
        return

    def holds() -> Bool[Array, ""]:
        value = call(fn, owner, w)
        halved = 2.0**degree * call(fn, owner, jax.tree.map(lambda leaf: leaf / 2, w))
        # Halving is exact, so a right degree is off by rounding inside fn only, a wrong one by a factor of 2.
        return jnp.max(jnp.abs(value - halved), initial=0.0) <= 0.01 * jnp.max(jnp.abs(value), initial=0.0)

    if refuted(holds, fn, w):
        raise ValueError(
            f"the function of {owner} is not homogeneous of the degree given, homogeneity={degree}, at these weights; "
            "give the right degree, or leave it out"
        )


def check_leaves(w: PyTree, owner: str) -> None:
    """Refuses weights without arrays, or with leaves that are no floating-point arrays."""
    leaves = jax.tree.leaves(w)
    if not leaves:
        raise ValueError(f"{owner} takes a pytree of arrays, got one without leaves")
    for leaf in leaves:
        check_factors(leaf, 1, owner, "in any pytree")


def as_homogeneity(value: Any) -> int | None:
    """Converts a degree of homogeneity to `int`; `None` says that it is not known."""
    if value is None:
        return None
    if not is_count(value):
        raise ValueError(f"homogeneity must be a whole number, got {value!r}; leave it out where it is not known")
    return int(value)


class Custom(AbstractReparameterization):
    """`x = fn(w)` for any differentiable function of a pytree of floating-point arrays.

    **Arguments:** `fn`: weights -> one array; `homogeneity`: p if you know that `fn(r w) = r^p fn(w)` for r > 0, which
    lets the flow follow tiny weights without losing digits, otherwise `None`.
    **Raises:** `ValueError` when fn is no function of one argument, or homogeneity no whole number; from
    `check` when fn does not return one floating-point array, or is not homogeneous of the degree given.
    """

    fn: Callable
    # static: it decides the flow's coordinates
    homogeneity: int | None = eqx.field(static=True, default=None, converter=as_homogeneity)

    def __check_init__(self):
        require_function(self.fn, "Custom", "the weights")

    degree = property(lambda self: self.homogeneity)
    elementwise = property(lambda self: False)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return call(self.fn, "Custom", w)

    def check(self, w: PyTree) -> None:
        check_leaves(w, "Custom")
        x = output_shape(self.fn, "Custom", w)
        if not isinstance(x, jax.ShapeDtypeStruct) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"the function of Custom must return one floating-point array, got {x}")
        check_degree(self.fn, w, self.homogeneity, "Custom")

    def capture(self, w: Weights) -> "Custom":
        return Custom(capture(self.fn, "Custom", w), self.homogeneity)
