"""Means and deviations over seeds, and the times at which curves cross."""

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Real

from ...runs.dataset import Dataset


class OverSeeds:
    """A variable of a training over seeds: mean, standard deviation (n - 1; NaN for one number), and a text of both.

    **Arguments:** `dataset`: with the dimension `seed`, and others that stay.
    """

    def __init__(self, dataset: Dataset, variable: str):
        values = dataset[variable]
        self.each = values.values
        self.mean = values.mean("seed").values
        # xarray's `std` warns where fewer than two seeds have a number.
        count, squares = values.count("seed"), ((values - values.mean("seed")) ** 2).sum("seed")
        self.deviation = np.sqrt((squares / (count - 1).where(count > 1)).values)

    def columns(self, name: str, at: Any) -> dict[str, Any]:
        """The entries of a table's row: the text under the name, and both numbers for the file."""
        return _entries(name, float(self.mean[at]), float(self.deviation[at]))


def mean_text(mean: float, deviation: float) -> str:
    """`1.23 ± 0.04`, `1.234 ± 0.012`: the deviation with one digit, or two behind a leading 1, and the mean to the same
    place; "-" where the mean is missing.
    """
    if math.isnan(mean):
        return "-"
    if not (math.isfinite(deviation) and deviation > 0):
        return f"{mean:.4g}"
    exponent = math.floor(math.log10(deviation))
    places = max(0, -exponent + (deviation < 2 * 10.0**exponent))
    return f"{round(mean, places) + 0.0:.{places}f} ± {deviation:.{places}f}"  # + 0.0: no minus before zero


def crossing(
    ts: Real[np.ndarray, " time"],
    rising: Float[np.ndarray, " time"],
    other: Float[np.ndarray, " time"],
    since: int | float,
) -> float:
    """The first time after `since` at which the curve that was below the other is above it; NaN where there is none.

    Between two records both curves are straight lines.
    """
    gap = rising - other
    for i in range(1, len(ts)):
        if ts[i] > since and gap[i - 1] < 0 <= gap[i]:
            return float(ts[i - 1] + (ts[i] - ts[i - 1]) * gap[i - 1] / (gap[i - 1] - gap[i]))
    return math.nan


class Crossing(NamedTuple):
    """The point at which the ratios of two runs are equal: its time, the ratio, and a measure of both runs there.

    All are NaN for runs whose ratios do not cross.
    """

    at: float
    ratio: float
    off: float  # of the run whose decay is off
    on: float  # of the one whose decay is on

    @property
    def difference(self) -> float:
        return self.off - self.on


def first_crossing(off: Dataset, on: Dataset, since: int | float, measure: str) -> Crossing:
    """Finds the first time after `since`, when a run was switched off, at which its ratio rises above that of a run
    that still decays.

    **Arguments:** `off`, `on`: datasets over time, with `ratio` and the variable `measure`.
    """
    ts = off["time"].values
    at = crossing(ts, off["ratio"].values, on["ratio"].values, since)
    return Crossing(at, *(float(np.interp(at, ts, each.values)) for each in (off["ratio"], off[measure], on[measure])))


def crossing_columns(off: Dataset, on: Dataset, since: int | float, measure: str) -> dict[str, Any]:
    """The entries of Table 3's rows: the number of seeds that cross (`seeds`, `crossed`), and over those seeds `at`,
    `ratio`, `off`, `on` and `difference`, as `summary` gives them, with the difference's `interval_columns`.

    **Arguments:** as in `first_crossing`, with the dimension `seed`.
    """
    count = off.sizes["seed"]
    found = [first_crossing(off.isel(seed=i), on.isel(seed=i), since, measure) for i in range(count)]
    crossed = [each for each in found if not math.isnan(each.at)]
    columns: dict[str, Any] = {"seeds": f"{len(crossed)} of {count}", "crossed": len(crossed)}
    for name in ("at", "ratio", "off", "on", "difference"):
        columns |= summary(name, np.asarray([getattr(each, name) for each in crossed]))
    return columns | interval_columns("difference", np.asarray([each.difference for each in crossed]))


def interval_columns(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The entries `interval`, a text, and `NAME_low`, `NAME_high` of a table's row: the 95 % interval of a mean.

    It is Student's, for values that are independent and about normal; missing for fewer than two.
    """
    low = high = math.nan
    if values.size > 1:
        half = scipy.stats.t.ppf(0.975, values.size - 1) * np.std(values, ddof=1) / math.sqrt(values.size)
        low, high = float(np.mean(values) - half), float(np.mean(values) + half)
    text = "-" if math.isnan(low) else f"{low:+.2g} to {high:+.2g}"
    return {"interval": text, f"{name}_low": low, f"{name}_high": high}


def summary(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The entries of a table's row for some numbers: a text, their mean, and their deviation (n - 1)."""
    mean = float(np.mean(values)) if values.size else math.nan
    deviation = float(np.std(values, ddof=1)) if values.size > 1 else math.nan
    return _entries(name, mean, deviation)


def _entries(name: str, mean: float, deviation: float) -> dict[str, Any]:
    return {name: mean_text(mean, deviation), f"{name}_mean": mean, f"{name}_std": deviation}
