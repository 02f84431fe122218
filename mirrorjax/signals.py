"""Signals that stop a run: SIGINT, SIGTERM and SIGHUP end it by an exception, after which it can be continued.

This file imports neither jax nor any other large package, so that a program can guard its imports too.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The handlers that `stoppable` replaces. A program that set its own keeps it, and an ignored signal stays ignored, as
# SIGHUP is under nohup. Windows has no SIGHUP.
DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
_received: list[int] = []  # the signal that stops the program, from its arrival until its exception has left the block


class Terminated(SystemExit):
    """Raised by SIGTERM and SIGHUP inside `stoppable`: the process ends with the status 128 + number, unless caught."""

    def __init__(self, number: int):
        self.code, self.signal = 128 + number, signal.Signals(number)
        self.args = (self.code,)


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns SIGINT into `KeyboardInterrupt`, and SIGTERM and SIGHUP into `Terminated`, which none of them loses.

    Python raises the exception of a signal wherever it happens to be, and drops it where that is a destructor or a
    callback of a library, as often during imports and tracing. `raise_if_stopped` raises it again, and so does the end
    of the block. Blocks may be nested; outside the main thread a block does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {}
    for name, default in DEFAULTS.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == default:
            replaced[number] = signal.signal(number, _stop)
    try:
        yield
        raise_if_stopped()
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        if replaced:  # the outermost block
            _received.clear()


def raise_if_stopped() -> None:
    """Raises the exception of a signal that has arrived inside `stoppable`, if it was dropped before."""
    if _received:
        raise _exception(_received[0])


def _stop(number: int, frame: FrameType | None) -> None:
    _received[:] = [number]
    raise _exception(number)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
