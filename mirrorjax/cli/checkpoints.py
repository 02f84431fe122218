"""`mirrorjax spectra` and `mirrorjax bias`: what weight decay did, read from checkpoints, as tables, curves and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .. import plot
from ..experiments.core.tables import as_text
from ..files import write_text
from ..nn.checkpoints import layer_of, read_biases, read_spectra
from ..problem import Hadamard, families_by_name
from ..results import status_name

MEASURES = {"ratio": "nuclear / Frobenius", "effective_rank": "effective rank", "stable_rank": "stable rank"}
SHARES = {"low": 0.25, "median": 0.5, "high": 0.75}
CSV = ".csv"
Row = dict[str, Any]


def show_spectra(checkpoints: Sequence[Path], heads: int | None, outs: Sequence[Path], console: Console) -> None:
    """Prints a row for each layer and head of each checkpoint, and writes curves and numbers to `outs`.

    Of several checkpoints the table has a row a layer, with the means over its heads; the CSV file has every head.

    **Raises:** `ValueError` as `read_spectra` does, for a file of `outs` of another kind, and for checkpoints of
    different modules.
    """
    _require_kinds(outs)
    labels = _labels(checkpoints)
    rows: list[Row] = []
    for label, path in zip(labels, checkpoints, strict=True):
        rows += _of_spectra(label, read_spectra(path, heads))
        _require_same_modules(rows, labels[0], label, path)
    shown = rows if len(labels) == 1 else _means(rows)
    names = ["module", *(["head"] if len(labels) == 1 else ["checkpoint"])]
    _print(shown, {name: name for name in names} | MEASURES, console)
    _write(rows, outs, lambda: _spectra_figure(rows, labels), console)


def show_bias(start: Path, checkpoints: Sequence[Path], family: str, outs: Sequence[Path], console: Console) -> None:
    """Prints a row for each tensor of each checkpoint: quartiles of a, and the entries that no flow reaches.

    **Raises:** `ValueError` as `read_biases` does, for an unknown family, and for a file of `outs` of another kind.
    """
    _require_kinds(outs)
    known = {**families_by_name(), "hadamard": Hadamard}
    if family not in known:
        raise ValueError(f"there is no family {family!r}; there are: {', '.join(known)}")
    labels = _labels(checkpoints)
    rows = [
        _of_bias(label, name, bias)
        for label, path in zip(labels, checkpoints, strict=True)
        for name, bias in read_biases(start, path, known[family]()).items()
    ]
    columns = {"module": "tensor", "checkpoint": "checkpoint", "median": "median a", "low": "25 %", "high": "75 %"}
    _print(rows, columns | {"entries": "entries", "unreached": "of them unreached"}, console)
    for text in dict.fromkeys(row["statuses"] for row in rows if row["statuses"]):
        console.print(f"unreached: {text}", highlight=False)
    console.print("a is minus the decay spent: 0 at the start, -sum of (step size x weight decay / 2) under the flow")
    _write(rows, outs, lambda: _bias_figure(rows, labels), console)


def _of_spectra(label: str, spectra: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, spectrum in spectra.items():
        group, layer = layer_of(name)
        measured = {key: np.atleast_1d(getattr(spectrum, key)) for key in MEASURES}
        has_heads = np.ndim(spectrum.ratio) == 1
        for head in range(len(measured["ratio"])):
            numbers = {key: float(values[head]) for key, values in measured.items()}
            place = {"checkpoint": label, "module": name, "group": group, "layer": layer}
            rows.append(place | {"head": str(head) if has_heads else "-"} | numbers)
    return rows


def _of_bias(label: str, name: str, bias: Any) -> Row:
    ok, a = np.asarray(bias.ok), np.asarray(bias.a, float)
    low, median, high = np.quantile(a[ok], list(SHARES.values())) if ok.any() else (np.nan,) * 3
    names, counts = np.unique(status_name(bias.result)[~ok], return_counts=True)
    statuses = ", ".join(f"{status} ({count})" for status, count in zip(names, counts, strict=True))
    numbers = {"low": low, "median": median, "high": high, "entries": ok.size, "unreached": int(np.sum(~ok))}
    return {"checkpoint": label, "module": name, **numbers, "statuses": statuses and f"{name}: {statuses}"}


def _labels(checkpoints: Sequence[Path]) -> list[str]:
    """The parts of the paths in which they differ: `checkpoint-100` of `run/checkpoint-100/model.safetensors`."""
    if len(set(checkpoints)) != len(checkpoints):
        raise ValueError(f"a checkpoint is given twice: {', '.join(map(str, checkpoints))}")
    if len(checkpoints) == 1:
        return [checkpoints[0].name]
    places = [path.absolute() for path in checkpoints]
    if len({place.name for place in places}) == 1:
        places = [place.parent for place in places]
    return [str(place.relative_to(commonpath(places))) for place in places]


def _require_same_modules(rows: Sequence[Row], first: str, label: str, path: Path) -> None:
    names = [{row["module"] for row in rows if row["checkpoint"] == each} for each in (first, label)]
    if difference := sorted(names[0] ^ names[1]):
        raise ValueError(
            f"{path} and the first checkpoint differ in the modules {', '.join(difference[:3])}; give one run's"
        )


def _means(rows: Sequence[Row]) -> list[Row]:
    """A row for each module and checkpoint, modules together: the means over the heads."""
    places = dict.fromkeys((row["module"], row["checkpoint"]) for row in rows)
    order = {module: number for number, module in enumerate(dict.fromkeys(row["module"] for row in rows))}
    means = []
    for module, checkpoint in sorted(places, key=lambda place: order[place[0]]):
        each = [row for row in rows if (row["module"], row["checkpoint"]) == (module, checkpoint)]
        means.append(each[0] | {"head": "-"} | {key: float(np.mean([row[key] for row in each])) for key in MEASURES})
    return means


def _spectra_figure(rows: Sequence[Row], labels: Sequence[str]) -> plot.Figure:
    """The three measures: over the layers, a curve a head or module; or over the checkpoints, a curve a layer."""
    if len(labels) > 1:
        curves = {module: [row for row in _means(rows) if row["module"] == module] for module in _names(rows)}
        x = {module: np.arange(len(labels)) for module in curves}
        return _figure(curves, x, MEASURES, "checkpoint", "Spectra over checkpoints", labels)
    groups = dict.fromkeys((row["group"], row["head"]) for row in rows)
    curves = {
        group if head == "-" else f"{group}, head {head}": [
            row for row in rows if (row["group"], row["head"]) == (group, head)
        ]
        for group, head in groups
    }
    x = {name: np.array([row["layer"] or 0 for row in each]) for name, each in curves.items()}
    return _figure(curves, x, MEASURES, "layer", f"Spectra of {labels[0]}", ())


def _bias_figure(rows: Sequence[Row], labels: Sequence[str]) -> plot.Figure:
    curves = {module: [row for row in rows if row["module"] == module] for module in _names(rows)}
    x = {module: np.arange(len(labels)) for module in curves}
    return _figure(curves, x, {"median": "median of a"}, "checkpoint", "Bias over checkpoints", labels)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["module"] for row in rows))


def _figure(
    curves: Mapping[str, Sequence[Row]],
    x: Mapping[str, np.ndarray],
    measures: Mapping[str, str],
    x_label: str,
    title: str,
    names: Sequence[str],
) -> plot.Figure:
    """A panel for each measure; curves beyond the first twelve have no entry in the legend."""
    shown = set(list(curves)[:12])
    panels = []
    for key, label in measures.items():
        lines = [
            plot.Line(x[name], np.array([row[key] for row in each]), name if name in shown else "", "o-")
            for name, each in curves.items()
        ]
        panels.append(plot.Panel(lines, label, x_label, label, names=names))
    return plot.line_panels(panels, title)


def _require_kinds(outs: Sequence[Path]) -> None:
    for out in outs:
        if out.suffix.lower() not in (*plot.FORMATS, CSV):
            raise ValueError(f"--out must be a file named {', '.join(plot.FORMATS)} or {CSV}, got {out}")


def _print(rows: Sequence[Row], columns: Mapping[str, str], console: Console) -> None:
    table = Table()
    for key, heading in columns.items():
        table.add_column(heading, justify="left" if isinstance(rows[0][key], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(as_text(row[key]) for key in columns))
    console.print(table, markup=False)


def _write(rows: Sequence[Row], outs: Sequence[Path], figure: Callable[[], plot.Figure], console: Console) -> None:
    for out in outs:
        if out.suffix.lower() == CSV:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(out, text.getvalue())
        else:
            plot.save(figure(), out)
        console.print(f"written: {out}", soft_wrap=True, highlight=False, markup=False)
