"""Reports the progress of a run: a bar on a terminal, and a `SweepReport` for callbacks, between compiled segments."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..signals import raise_if_stopped


class SweepReport(NamedTuple):
    """The progress of a run, which a callback gets after every few segments.

    - `lanes`: the number of lanes of this process; `ended`: how many of them have ended, in earlier runs too; `failed`:
      how many of those were not successful.
    - `efficiency`: the work that lanes needed (e.g. steps), divided by the work that the slots of
      the batch executed; NaN before the first step, and for jobs that do not count work.
    - `rate`: lanes per second since the start; `seconds`: since the start.
    - `latest`: the results of the lanes that have just ended: arrays (lanes, ...) by variable, with the numbers of the
      lanes as `lanes`.
    """

    lanes: int
    ended: int
    failed: int
    efficiency: float
    rate: float
    seconds: float
    latest: Mapping[str, np.ndarray]


Callback = Callable[[SweepReport], None]


class Reporter:
    """Counts lanes, shows the bar and calls the callback; a context manager."""

    def __init__(self, lanes: int, show: bool | None, callback: Callback | None):
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())
        self._bar.disable = not self._bar.console.is_terminal if show is None else not show
        self._task = self._bar.add_task("sweep", total=lanes, text="")
        self._callback, self._start = callback, time.monotonic()
        self._lanes, self._ended, self._here, self._failed = lanes, 0, 0, 0
        self.useful, self.executed = 0, 0

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def found(self, ended: int, failed: int) -> None:
        """Counts lanes whose results an earlier run has stored."""
        self._ended, self._failed = self._ended + ended, self._failed + failed
        self._show(0.0)

    def moved(self, latest: Mapping[str, np.ndarray], failed: int, underway: float, useful: int, executed: int) -> None:
        """Counts lanes that have just ended, and calls the callback.

        **Arguments:** `latest`: the results of these lanes; `failed`: how many were not successful; `underway`: the sum
        of the finished fractions of the other lanes; `useful`, `executed`: additional work, as in `efficiency`.
        """
        count = len(next(iter(latest.values()))) if latest else 0
        self._ended, self._here, self._failed = self._ended + count, self._here + count, self._failed + failed
        self.useful, self.executed = self.useful + useful, self.executed + executed
        self._show(underway)
        if self._callback is not None:
            self._callback(self.report(latest))
        raise_if_stopped()

    def report(self, latest: Mapping[str, np.ndarray]) -> SweepReport:
        """Returns the progress now."""
        seconds = time.monotonic() - self._start
        efficiency = self.useful / self.executed if self.executed else float("nan")
        rate = self._here / max(seconds, 1e-9)
        return SweepReport(self._lanes, self._ended, self._failed, efficiency, rate, seconds, latest)

    def _show(self, underway: float) -> None:
        report = self.report({})
        efficiency = "" if np.isnan(report.efficiency) else f"  efficiency {report.efficiency:.0%}"
        failed = f"  [red]{report.failed} failed[/red]" if report.failed else ""
        text = f"{report.ended}/{report.lanes} lanes  {report.rate:.3g} lanes/s{efficiency}{failed}"
        self._bar.update(self._task, completed=report.ended + underway, text=text)
