"""The operations of a program, counted in its jaxpr, so that nothing is lowered or compiled for an estimate."""

import math
from typing import Any

from jax.extend.core import Jaxpr

from ..programs import programs_in

# Primitives that a processor computes by a series of operations of its own.
_TRANSCENDENTAL = {
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "pow", "sqrt", "rsqrt", "cbrt", "erf", "erf_inv"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
}
# Primitives that only move numbers.
_MOVES = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice"),
    *("gather", "iota", "pad", "reshape", "rev", "scatter", "slice", "split", "squeeze", "stop_gradient", "transpose"),
}


def count_operations(program: Jaxpr) -> tuple[float, float]:
    """Counts the arithmetic operations and the transcendental functions of one call.

    A product of matrices counts two operations a term, a sum one a term, everything else one a number that it returns.
    Of a choice the costliest branch counts; of a loop without a known length, one round.
    """
    plain, transcendental = 0.0, 0.0
    for equation in program.eqns:
        inner = [count_operations(each) for each in programs_in(equation.params)]
        if inner:
            rounds = equation.params.get("length", 1)
            combine = max if equation.primitive.name == "cond" else sum
            plain += rounds * combine(each[0] for each in inner)
            transcendental += rounds * combine(each[1] for each in inner)
            continue
        size = float(sum(math.prod(_shape(variable)) for variable in equation.outvars))
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            plain += 2 * size * math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
        elif name in _TRANSCENDENTAL:
            transcendental += size
        elif name.startswith("reduce_"):
            plain += math.prod(_shape(equation.invars[0]))
        elif name not in _MOVES:
            plain += size
    return plain, transcendental


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
