"""What every experiment shares: a registry entry, and a run folder whose files are whole as soon as they are there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from .. import plot
from ..plot import Figure
from ..sweep.dataset import Dataset, versions


@dataclass(frozen=True)
class Setting:
    """What the user chose: the preset, the seed of the data, and the floating-point precision in bits."""

    preset: str
    seed: int
    bits: int


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its value there and here, and whether this run shows it."""

    statement: str
    paper: str
    ours: str
    holds: bool


class RunFolder:
    """A new folder that holds one run: datasets, tables, figures, and `config.json` with versions and seed.

    Each file is written under a temporary name and renamed, so what is there is whole; an interrupted run keeps what
    was finished, and its config says so.

    **Arguments:** `path`: a folder that does not exist yet; `experiment`: its name; `setting`: what was chosen.
    **Raises:** `FileExistsError` when the folder exists: results are never overwritten.
    """

    def __init__(self, path: Path, experiment: str, setting: Setting, console: Console):
        path.mkdir(parents=True, exist_ok=False)
        self.path = path
        self.console = console
        self.claims: list[Claim] = []
        self._config = {
            "experiment": experiment,
            **asdict(setting),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        self.finish("running")

    def finish(self, state: str, **extra: Any) -> None:
        """Record how far the run is: running, finished or interrupted."""
        self._config |= {"state": state, **extra}
        self._write("config.json", lambda path: path.write_text(json.dumps(self._config, indent=2) + "\n"))

    def save_dataset(self, name: str, dataset: Dataset) -> None:
        """Write `name`.nc (netCDF 4)."""
        self._write(f"{name}.nc", lambda path: dataset.to_netcdf(path, engine="h5netcdf"))

    def save_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `name`.csv, one row a mapping; missing values are empty."""
        self._write(f"{name}.csv", lambda path: pd.DataFrame(rows).to_csv(path, index=False))

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write `name`.png."""
        self._write(f"{name}.png", lambda path: plot.save(figure, path))

    def claim(self, statement: str, *, paper: str, ours: str, holds: bool) -> None:
        """Record in claims.csv, and print, what the paper says beside what this run measured, and whether they agree.

        **Arguments:** `statement`: one sentence that can be false; `paper`: its number or words ("-" where it gives
        none); `ours`: the measured number; `holds`: whether the measurement shows the statement.
        """
        claim = Claim(statement, paper, ours, holds)
        self.claims.append(claim)
        self.save_table("claims", [asdict(claim) for claim in self.claims])
        verdict = "shown" if holds else "NOT shown"
        self.console.print(f"{verdict}: {statement} (paper: {paper}; here: {ours})", highlight=False, soft_wrap=True)

    def show(self, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """Print rows as a table; `columns` maps keys to headings."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for key, heading in columns.items():
            table.add_column(heading, justify="left" if isinstance(rows[0][key], str) else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(_text(row[key]) for key in columns))
        self.console.print(table)

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        temporary = self.path / f".{name}.part{Path(name).suffix}"
        write(temporary)
        temporary.replace(self.path / name)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return "-"
    size = abs(value)
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.4g}"


@dataclass(frozen=True)
class Experiment:
    """One entry of the registry: a name, one line of help, the function that runs it in a folder, its usual seed."""

    name: str
    summary: str
    run: Callable[[RunFolder, Setting], None]
    seed: int = 0
    presets: tuple[str, ...] = ("paper", "quick")
