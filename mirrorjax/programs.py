"""Functions as the programs that they compute, so that functions that compute the same share what was compiled.

JAX keeps compiled programs by the identity of a function: a cell of a notebook that runs again defines its lambdas
again, and compiles again. Here a function is traced to its jaxpr, which costs milliseconds, and jaxprs that are equal
are replaced by the first of them. Arrays that a function closes over become arguments of its program, so that other
values of them give other results without a compilation. Every other number in it is part of the program.
"""

import functools
import hashlib
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, PyTree

from .checks import is_concrete

# Rules of derivatives are programs too, and call one another; deeper than this they are not compared.
RULES_WITHIN_RULES = 6
# The parameters by which JAX keeps the rules of a `jax.custom_vjp`.
RULES = ("fwd_jaxpr_thunk", "bwd", "out_trees")


class Program:
    """A jaxpr with the structures of its arguments and results. Equal programs are one object, see `as_program`.

    `key` is shared by equal programs; `None` until it is known, and for a program that cannot be compared.
    """

    def __init__(self, name: str, jaxpr: Jaxpr, arguments: Any, results: Any, rest: tuple[Any, ...]):
        self.name, self.jaxpr, self.arguments, self.results, self.rest = name, jaxpr, arguments, results, rest
        self.key: Hashable | None = None

    def __repr__(self) -> str:
        return self.name


class Computed(eqx.Module):
    """A function as its program, which it can be called for: the same arguments, up to the values of arrays.

    **Arguments:** `constants`: the arrays that the function closes over; `program`.
    """

    constants: list[Array]
    program: Program = eqx.field(static=True)  # static: the operations

    def __pdoc__(self, **_: Any) -> wl.AbstractDoc:
        return wl.TextDoc(f"<function {self.program.name}>")

    def __call__(self, *args: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(args)
        avals: list[Any] = [variable.aval for variable in self.program.jaxpr.invars]
        wanted = [(aval.shape, aval.dtype) for aval in avals]
        if structure != self.program.arguments or list(map(_form, leaves)) != wanted:
            raise ValueError(
                f"{self.program.name} was traced for arguments of other shapes or dtypes than it is called with, "
                f"{jax.tree.map(jnp.shape, args)} instead of {[shape for shape, _ in wanted]}"
            )
        arrays = map(_as_array, jax.core.eval_jaxpr(self.program.jaxpr, self.constants, *leaves))
        results = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.program.rest]
        return jax.tree.unflatten(self.program.results, results)


class _Array:
    """Stands for an array among the results of a program."""


_ARRAY = _Array()
_known: weakref.WeakValueDictionary[Hashable, Program] = weakref.WeakValueDictionary()


# The functions with rules of derivatives of their own that a program is inside of; `None`: rules are not compared.
Functions = tuple[Hashable, ...] | None


class _Incomparable(Exception):
    """Raised for a program with a part of which it cannot be told whether it equals another one."""


class _Function:
    """The key of a Python function in a program, such as a callback: it equals that of the same object alone."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def __hash__(self) -> int:
        return hash(self.fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and bool(self.fn == other.fn)


def as_program(fn: Callable, *args: PyTree, differentiable: bool = True) -> Callable:
    """Traces a function. Returns it as `Computed`, whose `program` is the same object for functions that are equal.

    Functions are equal if they are the same operations on arguments of the same shapes and dtypes, with the same
    numbers, up to the values of the arrays that they close over. One that calls back to a Python function equals those
    that call back to the same object. A function that cannot be compared, because it has a derivative rule that cannot
    be, is returned as it is, unless it closes over traced numbers.

    **Arguments:** `args`: examples of the arguments, pytrees of arrays or of their shapes; `differentiable`: False for
    a function that nobody differentiates, of which the rules of derivatives, which can take several times as long to
    trace as itself, are not compared.
    """
    rest: list[Any] = []

    def arrays_of(*args: PyTree) -> list[Any]:
        leaves, structure = jax.tree.flatten(fn(*args))
        rest[:] = [structure, tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)]
        return [leaf for leaf in leaves if _is_array(leaf)]

    leaves, structure = jax.tree.flatten(args)
    # Examples without weak types, which the arguments of later calls may not have.
    like = [jax.ShapeDtypeStruct(*_form(leaf)) for leaf in leaves]
    closed = jax.make_jaxpr(lambda *leaves: arrays_of(*jax.tree.unflatten(structure, leaves)))(*like)
    program = Program(_name(fn), closed.jaxpr, structure, *rest)
    constants = [_as_array(constant) for constant in closed.consts]
    try:
        program.key = _program_key(program, () if differentiable else None)
        program = _known.setdefault(program.key, program)
    except _Incomparable:
        if is_concrete(constants):
            return fn
    return Computed(constants, program)


def _as_array(value: Any) -> Array:
    # JAX keeps constants of NumPy in a class of its own, which is no `jax.Array`.
    return value if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _form(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype that a number has inside a program."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return jnp.shape(leaf), jnp.result_type(leaf)
    return leaf.shape, dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(dtype)


def programs_in(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an equation with these parameters calls. Rules of derivatives are functions, and no programs,
    as long as they are not used."""
    for value in jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def primitives_in(program: Jaxpr) -> set[str]:
    """The names of the primitives of a program and of those that it calls."""
    found = {equation.primitive.name for equation in program.eqns}
    return found.union(*(primitives_in(each) for equation in program.eqns for each in programs_in(equation.params)))


def key_of(tree: PyTree) -> Hashable | None:
    """A key that trees of functions and modules share if they are the same programs with the same constants.

    `None` for a tree with a part of which that cannot be told. Functions that are no `Computed` are the same if they
    are one object, as they are to `jax.jit`.
    """
    leaves, structure = jax.tree.flatten(tree)
    try:
        key = structure, tuple(_value_key(leaf, ()) for leaf in leaves)
        hash(key)  # a module may have a static field that cannot be hashed
    except (_Incomparable, TypeError):
        return None
    return key


def is_same(one: PyTree, other: PyTree) -> bool:
    """True if two trees of functions and modules are the same programs with the same constants.

    The two are made by tracing the same functions twice: a function that is not pure, one that draws random numbers of
    NumPy, reads the time or counts its calls, makes them differ. Of functions that are no `Computed`, and of those that
    are called back by a program, nothing is known: each trace may define them again.
    """
    one_leaves, structure = jax.tree.flatten(one, is_leaf=_is_computed)
    other_leaves, other_structure = jax.tree.flatten(other, is_leaf=_is_computed)
    return structure == other_structure and all(map(_is_same_leaf, one_leaves, other_leaves))


def _is_computed(leaf: Any) -> bool:
    return isinstance(leaf, Computed)


def _is_same_leaf(one: Any, other: Any) -> bool:
    try:
        return _agree(_leaf_key(one), _leaf_key(other))
    except _Incomparable:
        return True


def _leaf_key(leaf: Any) -> Hashable:
    if not isinstance(leaf, Computed):
        return _value_key(leaf, ())
    if leaf.program.key is None:
        raise _Incomparable
    return leaf.program.key, _value_key(tuple(leaf.constants), ())


def _agree(one: Hashable, other: Hashable) -> bool:
    """True for equal keys, and for keys that differ in Python functions alone."""
    if one is other:  # as the keys of one program are
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_agree, one, other))
    return one == other or (isinstance(one, _Function) and isinstance(other, _Function))


def _name(fn: Callable) -> str:
    named = getattr(fn, "func", fn)
    return getattr(named, "__name__", type(named).__name__)


def _program_key(program: Program, enclosing: Functions) -> Hashable:
    results = _value_key((program.results, program.rest), ())
    return enclosing, _jaxpr_key(program.jaxpr, enclosing), program.arguments, results


def _jaxpr_key(jaxpr: Jaxpr, enclosing: Functions) -> Hashable:
    """A key that equal jaxprs share: variables are numbered in the order in which they appear."""
    numbers: dict[Any, int] = {}

    def key(variable: Any) -> Hashable:
        if isinstance(variable, Literal):
            return "literal", _value_key(variable.val, enclosing), variable.aval
        return numbers.setdefault(variable, len(numbers)), variable.aval

    arguments = tuple(key(variable) for variable in [*jaxpr.constvars, *jaxpr.invars])
    equations = tuple(
        (
            equation.primitive,
            tuple(key(variable) for variable in equation.invars),
            _parameters_key(equation, enclosing),
            tuple(key(variable) for variable in equation.outvars),
        )
        for equation in jaxpr.eqns
    )
    return arguments, equations, tuple(key(variable) for variable in jaxpr.outvars)


def _parameters_key(equation: Any, enclosing: Functions) -> Hashable:
    parameters = dict(equation.params)
    rule = parameters.pop("jvp_jaxpr_fun", None)
    if enclosing is None:
        parameters = {name: value for name, value in parameters.items() if name not in RULES}
    keys = tuple((name, _value_key(parameters[name], enclosing)) for name in sorted(parameters))
    context = getattr(equation, "ctx", None)
    settings = tuple(getattr(context, name, None) for name in ("compute_type", "threefry_partitionable"))
    return (*keys, settings, None if rule is None or enclosing is None else _rule_key(rule, equation, enclosing))


def _rule_key(rule: Any, equation: Any, enclosing: tuple[Hashable, ...]) -> Hashable:
    """The key of the rule of a `jax.custom_jvp`: its program, where tangents are known for all arguments."""
    own = _value_key(equation.params["call_jaxpr"], enclosing)
    if enclosing.count(own) > 1:
        return "as above"  # a rule that calls its own function, as that of relu does
    if len(enclosing) >= RULES_WITHIN_RULES or equation.params.get("symbolic_zeros"):
        raise _Incomparable
    count = len(equation.invars) - equation.params["num_consts"]
    try:
        jaxpr, constants, zeros = rule.call_wrapped(*[False] * count)
    except Exception:  # any error of a rule that nobody has asked for yet
        raise _Incomparable from None
    return _jaxpr_key(jaxpr, (*enclosing, own)), _value_key(tuple(constants), (*enclosing, own)), tuple(zeros)


def _value_key(value: Any, enclosing: Functions) -> Hashable:
    """A key that equal values share. Raises `_Incomparable` for values of which that cannot be told."""
    if isinstance(value, ClosedJaxpr):
        return "closed", _jaxpr_key(value.jaxpr, enclosing), _value_key(tuple(value.consts), enclosing)
    if isinstance(value, Jaxpr):
        return "jaxpr", _jaxpr_key(value, enclosing)
    if isinstance(value, tuple | list):
        return type(value), tuple(_value_key(each, enclosing) for each in value)
    if isinstance(value, dict):
        return dict, tuple((name, _value_key(each, enclosing)) for name, each in value.items())
    if isinstance(value, jax.core.Tracer):
        raise _Incomparable
    if isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array) or _is_typed(value):
        return _array_key(value)
    key = _Function(value) if callable(value) and not isinstance(value, type) else (type(value), value)
    try:
        hash(key)
    except TypeError:
        raise _Incomparable from None
    return key


def _is_typed(value: Any) -> bool:
    # JAX keeps constants of NumPy and of Python in classes of its own.
    return hasattr(value, "dtype") and hasattr(value, "__array__")


def _array_key(value: Any) -> Hashable:
    """Type, dtype, shape and bytes, or their checksum: 0.0 and -0.0 are different numbers, and NaN equals itself."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(value)), _array_key(jax.random.key_data(value))
    array = np.asarray(value)
    content = array.tobytes()
    # A long key would keep a copy of the constants of a program in memory.
    return type(value), array.dtype, array.shape, content if len(content) <= 64 else hashlib.sha256(content).digest()


def interned(value: Any) -> Any:
    """Returns a value made of functions, such as an optax optimizer, or an equal one that was given earlier.

    Functions are equal if the same line of a library makes them, as `optax.sgd(0.1)` does, and they close over equal
    numbers and equal functions. A value that holds anything else, such as a function of the caller's own, which may
    read variables that change, is returned as it is.
    """
    try:
        key = _part_key(value)
    except _Incomparable:
        return value
    if key not in _parts and len(_parts) >= MOST_PARTS:
        _parts.pop(next(iter(_parts)))
    return _parts.setdefault(key, value)


MOST_PARTS = 1000  # values that are remembered
LIBRARIES = ("optax", "jax", "chex", "mirrorjax")
_parts: dict[Hashable, Any] = {}


def _part_key(value: Any) -> Hashable:
    if isinstance(value, types.FunctionType):
        if value.__module__.partition(".")[0] not in LIBRARIES:
            raise _Incomparable
        inside = tuple(cell.cell_contents for cell in value.__closure__ or ())
        parts = _part_key((inside, value.__defaults__, value.__kwdefaults__))
        # The value is kept, and so is its code, whose identity nothing else can take.
        return id(value.__code__), parts
    if isinstance(value, functools.partial):
        return functools.partial, _part_key((value.func, value.args, value.keywords))
    if isinstance(value, tuple | list):
        return type(value), tuple(_part_key(each) for each in value)
    if isinstance(value, dict):
        return dict, tuple((name, _part_key(each)) for name, each in value.items())
    if value is None or isinstance(value, str | type):
        return value
    if isinstance(value, jax.core.Tracer):
        raise _Incomparable
    if isinstance(value, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
        return _array_key(value)
    raise _Incomparable
