"""Derivatives by formula, such as the implicit function theorem, for values found by a search or an integration.

Differentiating the loop that found the value would be slow, and wrong where the loop stopped at its tolerance.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx


def tied(rule: Callable) -> Callable:
    """Decorates a rule `(value, args, tangents) -> tangent of value`, and returns `fn(value, *args) -> value`.

    The value passes through unchanged; its derivative is the rule's, in forward and reverse mode. The value that the
    rule is given is tied as well, so that the rule can be differentiated again. `tangents` are those of `args`, `None`
    for each leaf that has none; the tangent of `value` itself is ignored.
    """

    @eqx.filter_custom_jvp
    def fn(value: Any, *args: Any) -> Any:
        return value

    @fn.def_jvp
    def fn_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        value = fn(*primals)
        return value, rule(value, primals[1:], tangents[1:])

    return fn
