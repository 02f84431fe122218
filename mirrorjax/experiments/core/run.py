"""The folder of a run, whose files are whole as soon as they are there."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ... import plot
from ...files import write_whole
from ...plot import Figure
from ...runs.dataset import Dataset, versions
from .experiment import Setting
from .folders import make_folder
from .machine import commit, machine
from .tables import Claim, as_text, write_rows

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
FIGURES = ("png", "pdf")  # each figure is written in these formats


class RunFolder:
    """A new folder that holds one run: datasets, tables, figures, and `config.json` with versions, commit and seed.

    Each file is written under a temporary name and renamed, so no file is half-written; an interrupted run keeps its
    finished files, and its config says that it was interrupted. The config also holds the parts of a report that are
    not in the files: captions and descriptions of figures, titles and headings of tables.

    **Arguments:** `path`: a folder that does not exist yet; `experiment`: its name; `setting`: the user's choices;
    `summary`: one line on what the experiment is; `resume`: go on with the run in a folder that exists. Its trainings
    continue from their checkpoints, and its other files are written anew.
    **Raises:** `FileExistsError` when the folder exists: results are never overwritten; `OSError` where it cannot be
    made; with `resume`, `ValueError` for a folder that holds a finished run, another run, or none.
    """

    def __init__(
        self,
        path: Path,
        experiment: str,
        setting: Setting,
        console: Console,
        summary: str = "",
        *,
        resume: bool = False,
    ):
        if resume:
            _require_unfinished(path, {"experiment": experiment, **asdict(setting)})
        else:
            make_folder(path)
        self._resumes = resume
        self.path = path
        self.console = console
        self.claims: list[Claim] = []
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        self._begun = time.monotonic()
        self._config: dict[str, Any] = {
            "experiment": experiment,
            "summary": summary,
            **asdict(setting),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
            "commit": commit(),
            "tables": [],
            "figures": {},
        }
        self.finish("running")

    def finish(self, state: str, **extra: Any) -> None:
        """Record how far the run is, running, finished, interrupted or failed, and the seconds it took so far.

        A finished run needs its checkpoints no more, and they are removed.
        """
        self._record(state=state, seconds=round(time.monotonic() - self._begun, 1), **extra)
        if state == "finished":
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)  # a file that stays is only in the way

    def require_shown(self) -> None:
        """Refuses a claim that says to see what the run has not saved.

        **Raises:** `ValueError` with the unknown names and the figures and tables that there are.
        """
        known = sorted({*self._config["figures"], *self._rows} - {"claims"})
        for claim in self.claims:
            if unknown := sorted(set(claim.see.split()) - set(known)):
                raise ValueError(
                    f"the claim {claim.statement!r} says to see {', '.join(unknown)}, which the run has not saved; "
                    f"its figures and tables are: {', '.join(known) or 'none'}"
                )

    def checkpoints(self, name: str) -> dict[str, Any]:
        """The arguments `store` and `resume` of `mirrorjax.nn.train` with which an interrupted run goes on.

        **Arguments:** `name`: the training's own among those of the experiment.
        """
        return {"store": self.path / CHECKPOINTS / name, "resume": self._resumes}

    def save_dataset(self, name: str, dataset: Dataset) -> None:
        """Write `name`.nc (netCDF 4)."""
        self._write(f"{name}.nc", lambda path: dataset.to_netcdf(path, engine="h5netcdf"))

    def save_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `name`.csv, one row a mapping; missing values are empty."""
        self._rows[name] = list(rows)
        self._write(f"{name}.csv", lambda path: write_rows(path, rows))

    def save_figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """Write `name`.png and `name`.pdf; `caption`: a sentence or two under it in the report."""
        for ending in FIGURES:
            self._write(f"{name}.{ending}", lambda path: plot.save(figure, path))
        self._record(figures=self._config["figures"] | {name: {"caption": caption, "alt": plot.describe(figure)}})

    def claim(
        self, statement: str, *, paper: str, ours: str, holds: bool, key: str = "", see: Sequence[str] = ()
    ) -> None:
        """Record in claims.csv, and print, the paper's statement beside this run's measurement, and whether they agree.

        **Arguments:** `statement`: one sentence that can be false; `paper`: its number or words ("-" where it gives
        none); `ours`: the measured number; `holds`: whether the measurement shows the statement; `key`: its name in the
        ledger of the paper's claims; `see`: names of figures and tables that show it, to which the report links, by
        default all of the run.
        """
        claim = Claim(statement, paper, ours, bool(holds), key, " ".join(see))
        self.claims.append(claim)
        self.save_table("claims", [asdict(claim) for claim in self.claims])
        verdict = "shown" if holds else "NOT shown"
        line = f"{verdict}: {statement} (paper: {paper}; here: {ours})"
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def show(
        self, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], table_file: str | None = None
    ) -> None:
        """Print rows as a table, and have the report show them.

        **Arguments:** `columns`: keys to headings; `table_file`: the name under which `save_table` keeps these rows,
        maybe among others. Without it they are printed only, and the report shows each saved table as it is.
        """
        if table_file is not None:
            chosen = [self._rows[table_file].index(row) for row in rows]
            shown = {"file": table_file, "title": title, "columns": dict(columns), "rows": chosen}
            self._record(tables=[*self._config["tables"], shown])
        table = Table(
            title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        for key, heading in columns.items():
            # In a narrow terminal headings wrap; numbers are never cut.
            widest = max(len(as_text(row[key])) for row in rows)
            table.add_column(
                escape(heading), justify="left" if isinstance(rows[0][key], str) else "right", min_width=widest
            )
        for row in rows:
            table.add_row(*(escape(as_text(row[key])) for key in columns))
        self.console.print(table)

    def _record(self, **entries: Any) -> None:
        self._config |= entries
        self._write(CONFIG, lambda path: path.write_text(json.dumps(self._config, indent=2) + "\n"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        write_whole(self.path / name, write)


def is_finished(path: Path, experiment: str, setting: Setting) -> bool:
    """True if the folder holds a finished run of this experiment with this setting."""
    wanted = {"experiment": experiment, **asdict(setting), "state": "finished"}
    return wanted.items() <= _read_state(path).items()


def _require_unfinished(path: Path, wanted: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless the folder holds an unfinished run with these entries in its config."""
    found = _read_state(path)
    if not found:
        raise ValueError(f"{path} holds no run to go on with: it has no readable {CONFIG}; start one without --resume")
    if differences := [f"{name} is {found.get(name)!r} there" for name in wanted if found.get(name) != wanted[name]]:
        raise ValueError(f"{path} holds another run: {', '.join(differences)}; resume with the options it began with")
    if found.get("state") == "finished":
        raise ValueError(f"{path} holds a finished run; start another without --resume")


def _read_state(path: Path) -> dict[str, Any]:
    """The config of a run folder; an empty mapping where there is none that can be read."""
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
