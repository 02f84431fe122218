"""Families of reparameterizations by the names that they have on the command line."""

from collections.abc import Callable
from functools import partial

from . import differences, elementwise, matrix
from .reparam import AbstractReparameterization


def families_by_name() -> dict[str, Callable[[], AbstractReparameterization]]:
    """Functions that build a family, by name: every entry of `command_line` of a class in this package."""
    classes = [value for module in (elementwise, differences, matrix) for value in vars(module).values()]
    return {
        name: partial(cls, **arguments)
        for cls in classes
        if isinstance(cls, type) and issubclass(cls, AbstractReparameterization)
        for name, arguments in cls.command_line.items()
    }
