"""Curves for figures, and settling times, from the dataset of a sweep or a training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from ... import plot
from ...runs.dataset import Dataset
from .statistics import OverSeeds


def strength_lines(
    dataset: Dataset, variable: str, strengths: Float[np.ndarray, " n"], labels: Sequence[str]
) -> list[plot.Line]:
    """`variable` over time, one curve for each of these strengths of a dataset with the dimensions alpha and time."""
    chosen = [dataset[variable].sel(alpha=alpha, method="nearest") for alpha in strengths]
    return [plot.Line(dataset.time.values, each.values, label) for each, label in zip(chosen, labels, strict=True)]


def settling_time(ts: Float[np.ndarray, " time"], values: Float[np.ndarray, " time"], level: float) -> float:
    """The time from which on the values stay below the level; NaN if they are not below it, or missing, at the end.

    Between save times by a straight line through the logarithms, as positive values that decay exponentially have.
    """
    above = np.flatnonzero(~(values < level))
    if above.size == 0:
        return float(ts[0])
    last = above[-1]
    if last == len(ts) - 1:
        return float("nan")
    high, low = np.log(values[last]), np.log(values[last + 1])
    return float(ts[last] + (ts[last + 1] - ts[last]) * (high - np.log(level)) / (high - low))


def mean_curve(
    ts: Real[np.ndarray, " time"], over_seeds: OverSeeds, at: Any, label: str, style: str = "-", color: Any = None
) -> plot.Line:
    """The mean over seeds with a band of one standard deviation; `at`: which curve, over the axes before time."""
    return plot.Line(ts, over_seeds.mean[at], label, style, color, spread=over_seeds.deviation[at])
