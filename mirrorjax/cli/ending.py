"""The one place where the command line ends: signals and errors become one line and an exit status.

| status | the command |
|---|---|
| 0 | did what it was asked to |
| 1 | did it, but something of it failed; or met an error that nobody foresaw, which is shown whole |
| 2 | was given bad input, or a file or folder that cannot be used: one line says which, and what to do |
| 130, 143, 129 | was stopped, by Ctrl-C, SIGTERM or SIGHUP: one line says what was finished |
"""

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from ..places import is_deliberate, is_users, user_place
from ..signals import DEFAULTS, Terminated, stoppable

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
BUG = "This is a bug of mirrorjax. Please report it, with the lines above and the command."
# Errors with words for the user if a `raise` of this package raised them; other ones of these kinds are bugs.
OURS = (ValueError, TypeError, RuntimeError, ArithmeticError)


class Stopped(SystemExit):
    """Raised where a command was stopped by a signal: the exit status, and the line that says what was finished."""

    def __init__(self, status: int, line: str):
        self.code = self.status = status
        self.line, self.args = line, (status,)


@contextmanager
def ending() -> Iterator[None]:
    """Runs a command, prints one line if it was stopped or failed, and exits with the status of the table above."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding still shows every message
    try:
        with _leaving_at_once():
            yield
    except Stopped as stopped:
        tell(stopped.line, stderr=True)
        end_process(stopped.status)
    except Exception as error:
        line = foreseen(error)
        if line is not None:
            fail(line)
        traceback.print_exception(error)
        tell(BUG, stderr=True)
        raise SystemExit(FAILED) from None


@contextmanager
def stopping(line: Callable[[], str]) -> Iterator[None]:
    """Lets a block that writes files come to an orderly end when it is stopped, with the line that `line` makes then.

    Outside of such a block a signal ends the process at once. There is nothing to finish, and the exception of a signal
    may be lost in an import, or crash the library that is imported.
    """
    try:
        with _defaults_restored(), _quiet(), stoppable():
            yield
    except KeyboardInterrupt:
        raise Stopped(INTERRUPTED, line()) from None
    except Terminated as stop:
        raise Stopped(128 + stop.signal, line()) from None


def foreseen(error: Exception) -> str | None:
    """The line that tells an error of the input, of files or of the user's code; `None` for a bug of this package."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    if is_users(error):
        return f"{type(error).__name__}: {_one_line(str(error))}{user_place(error)}"
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"there is not enough memory: {_one_line(str(error))}"
    if isinstance(error, ImportError):
        return str(error)
    is_status = type(error).__module__.startswith("equinox")  # raised by a status inside a compiled function
    if isinstance(error, OURS) and (is_deliberate(error) or is_status):
        return f"{error}{_place_unless_told(error)}"
    return None


def end_process(code: int) -> NoReturn:
    """Ends the process at once. Python's own shutdown may crash while a computation still runs in a thread of XLA."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def fail(message: str) -> NoReturn:
    """Ends the command with one message and the status of bad input."""
    tell(message, stderr=True, error=True)
    raise SystemExit(REFUSED)


def tell(message: str, *, stderr: bool = False, error: bool = False) -> None:
    """Prints a line as it is, so that paths can be copied: square brackets are no markup, and nothing is wrapped."""
    from rich.text import Text

    text = Text.assemble(("Error: ", "red"), message) if error else Text(message)
    with suppress(OSError):  # the terminal may be gone, as after SIGHUP
        console(stderr).print(text, highlight=False, soft_wrap=True)


def console(stderr: bool = False) -> Any:
    """A console of rich on the standard output or error; made when it is used, because importing rich takes time."""
    from rich.console import Console

    return Console(stderr=stderr)


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Replaces the handlers of signals that stop a program, where they are the default ones, by `_leave`."""
    with _handlers({number: _leave for number, default in _defaults().items() if signal.getsignal(number) == default}):
        yield


@contextmanager
def _defaults_restored() -> Iterator[None]:
    """Puts the default handlers, which `stoppable` replaces by its own, in the place of `_leave`."""
    with _handlers({n: default for n, default in _defaults().items() if signal.getsignal(n) == _leave}):
        yield


@contextmanager
def _handlers(wanted: dict[int, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        wanted = {}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _defaults() -> dict[int, Any]:
    named = {getattr(signal, name, None): handler for name, handler in DEFAULTS.items()}
    return {number: handler for number, handler in named.items() if number is not None}  # Windows has no SIGHUP


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"Interrupted.\n")
    os._exit(128 + number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Python from printing that it drops the exception of a signal, which `stoppable` raises again."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt | Terminated):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _of_system(error: OSError) -> str:
    if error.strerror is None or is_deliberate(error):
        return error.strerror or str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _place_unless_told(error: Exception) -> str:
    place = user_place(error)
    return "" if place in str(error) else place


def _one_line(text: str) -> str:
    return " ".join(text.split())
