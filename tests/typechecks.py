"""Types checked at run time: each function of the package is compiled into its checks when it is first called."""

import functools
from collections.abc import Callable
from typing import Any

from beartype import beartype

CHECKS = "typechecks.checked_when_called"  # for jaxtyping's import hook, which takes a name


def checked_when_called(fn: Callable) -> Callable:
    """`beartype(fn)`, made at the first call: a process calls few of the five thousand functions that it imports."""
    checked: Any = None

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        checked = beartype(fn) if checked is None else checked
        return checked(*args, **kwargs)

    return call
