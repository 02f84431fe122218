"""From the dataset of a sweep to curves and times: what the experiments over strengths share."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ... import plot
from ...runs.dataset import Dataset


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
