"""The part of a run's configuration that says what its files hold: the grid, the results, and the size of groups.

The record is JSON in `config.json`; the numbers, which are the labels of the grid and the save times, are an archive.
Both are checked when they are read: a run folder may come from anywhere.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from .archive import TEXT, Arrays, Layout, Shape, shape_of
from .configuration import describe_grid
from .dataset import CODE, About, require_names
from .grid import Labels

RECORD, TIMES = "record", ".ts"  # the names of the record in a configuration, and of the save times in its archive


class Record(NamedTuple):
    """The shapes and checksums by which the files of a run are read.

    `dimensions`: the shapes of the labels, by dimension and parameter; `about`: without times; `times`: their number,
    None for none; `group_size`: lanes in a group; `grid`: checksums of the labels.
    """

    dimensions: Mapping[str, Layout]
    about: About
    times: int | None
    group_size: int
    grid: Any

    @property
    def layout(self) -> dict[str, Shape]:
        """The layout of the archive of labels and times."""
        labels = {f"{axis}/{name}": shape for axis, values in self.dimensions.items() for name, shape in values.items()}
        return labels if self.times is None else labels | {TIMES: Shape(np.dtype(float), (self.times,))}

    def read(self, arrays: Arrays) -> tuple[Labels, About] | None:
        """Returns the labels, and the description of the results with its times; None for those of another run."""
        labels = Labels({axis: {name: arrays[f"{axis}/{name}"] for name in v} for axis, v in self.dimensions.items()})
        return (labels, self.about._replace(ts=arrays.get(TIMES))) if describe_grid(labels) == self.grid else None


def to_record(labels: Labels, about: About, group_size: int) -> dict[str, Any]:
    """Returns the record of a run as JSON."""
    return {
        "dimensions": {
            axis: {name: _to_json(shape_of(value)) for name, value in values.items()}
            for axis, values in labels.axes.items()
        },
        "results": {name: _to_json(shape) for name, shape in about.results.items()},
        "times": None if about.ts is None else len(about.ts),
        "over_time": list(about.over_time),
        "texts": {name: list(text) for name, text in about.texts.items()},
        "group_size": group_size,
        "statuses": list(about.statuses),
    }


def to_arrays(labels: Labels, about: About) -> dict[str, np.ndarray]:
    """Returns the labels of the grid, and the save times, as the arrays that `Record.read` reads."""
    values = {f"{axis}/{name}": value for axis, part in labels.axes.items() for name, value in part.items()}
    return values if about.ts is None else values | {TIMES: np.asarray(about.ts, float)}


def from_record(configuration: Mapping[str, Any]) -> Record:
    """Reads the record of a configuration. Raises `ValueError` where it is none that `to_record` writes."""
    try:
        record = configuration[RECORD]
        results, over_time = _layout(record["results"]), tuple(str(name) for name in record["over_time"])
        texts = {str(name): (str(text), str(units)) for name, (text, units) in record["texts"].items()}
        dimensions = {str(axis): _layout(values) for axis, values in record["dimensions"].items()}
        times = record["times"] if record["times"] is None else _count(record["times"], 0)
        statuses, group_size = _names(record["statuses"]), _count(record["group_size"])
        about = About(results, None if times is None else np.zeros(times), over_time, texts, statuses)
        lengths = [{shape.shape[0] for shape in values.values()} for values in dimensions.values()]
        if not lengths or any(len(length) != 1 for length in lengths):
            raise ValueError("the values of a dimension have several lengths")
        if any(name not in results or results[name].shape[:1] != (times,) for name in over_time):
            raise ValueError("a result over time has another length")
        require_names(
            Labels({a: {n: np.zeros(s.shape[:1]) for n, s in v.items()} for a, v in dimensions.items()}), about
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its record of what the files hold is damaged, or of another version: {error!r}") from error
    return Record(dimensions, about, times, group_size, configuration["grid"])


def groups_of(count: int, size: int) -> list[Int[np.ndarray, " _"]]:
    """Returns the groups of lanes: as few as groups of at most `size` lanes can be, of equal sizes up to one lane.

    Every lane is in one group, by a fixed permutation, whoever computes the group. A last group of a few lanes would
    need a program of its own.
    """
    return np.array_split(np.random.default_rng(0).permutation(count), -(-count // size))


def _to_json(shape: Shape) -> list[Any]:
    return [shape.dtype.str, *shape.shape]


def _layout(values: Mapping[str, Any]) -> dict[str, Shape]:
    return {str(name): _from_json(*value) for name, value in values.items()}


def _from_json(dtype: str, *shape: Any) -> Shape:
    kind = np.dtype(dtype)
    if kind.kind not in "biufc" and kind != TEXT:
        raise ValueError(f"results have no dtype {dtype!r}")
    return Shape(kind, tuple(_count(size, 0) for size in shape))


def _names(values: Any) -> tuple[str, ...]:
    if not (isinstance(values, list) and all(isinstance(name, str) and name.isidentifier() for name in values)):
        raise ValueError(f"{values!r} are no names of statuses")
    if not 0 < len(set(values)) == len(values) <= np.iinfo(CODE).max:
        raise ValueError(f"{values!r} are too many names of statuses, none, or some of them twice")
    return tuple(values)


def _count(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is no number of entries")
    return value
