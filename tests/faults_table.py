"""Rows of the tables of faults: bad inputs with the words that must answer them, and numbers that once were wrong."""

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mirrorjax

ERRORS = (ValueError, TypeError, RuntimeError, OSError)
PACKAGE = str(Path(mirrorjax.__file__).parent)


class Refusal(NamedTuple):
    """A bad input: `call` must raise an error of mirrorjax's own whose message matches the pattern `says`."""

    what: str
    call: Callable[[], Any]
    says: str

    def check(self) -> None:
        with pytest.raises(ERRORS) as caught:
            self.call()
        message = str(caught.value)
        assert re.search(self.says, message), message
        # One sentence or two of ours: no page, and no error that a library raised.
        assert len(message) < 700, message
        assert message.count("\n") < 8, message
        raised_in = traceback.extract_tb(caught.value.__traceback__)[-1].filename
        assert raised_in.startswith(PACKAGE), f"{type(caught.value).__name__} was raised in {raised_in}: {message}"


class Right(NamedTuple):
    """A number that was wrong once: `call` returns the number and the right one, from outside the code it checks."""

    what: str
    call: Callable[[], tuple[Any, Any]]
    rtol: float
    atol: float = 0.0

    def check(self) -> None:
        got, right = self.call()
        np.testing.assert_allclose(np.asarray(got), np.asarray(right), rtol=self.rtol, atol=self.atol)


def table(rows: list[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by the rows of a table, named by `what`."""
    names = [row.what for row in rows]
    assert len(set(names)) == len(names), "two rows have the same name"
    return pytest.mark.parametrize("row", rows, ids=names)
