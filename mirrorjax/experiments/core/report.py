"""One HTML file that tells what runs found: claims, tables, figures, versions. Made of their folders alone.

It needs nothing beside it and nothing from the net: pictures and style are inside, there is no script. The same folders
give the same page, so it can be made again at any time, and of a run that was interrupted too.
"""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from .run import CONFIG, Claim, as_text, write_whole

REPORT = "report.html"
MOST_ROWS = 40
DOTS_PER_INCH, PIXELS_PER_INCH = 150, 96  # of a saved figure, and of a page
STATES = {
    "finished": "finished",
    "interrupted": "interrupted: only what was finished is here",
    "failed": "failed",
    "running": "not finished: still running, or killed",
    "not started": "not started",
}


@dataclass(frozen=True)
class Heading:
    """Of a column: its text, and whether numbers stand under it."""

    text: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Texts in rows under headings; `total` rows are in the file, of which the first ones may be all that is here."""

    title: str
    file: str
    headings: list[Heading]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class Figure:
    """A picture as a data URI, its size on the page in pixels, what is said under it and in its place."""

    name: str
    source: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Run:
    """What the page shows of one run; `anchor` is its id on the page."""

    anchor: str
    name: str
    config: Mapping[str, Any]
    claims: list[Claim]
    tables: list[Table]
    figures: list[Figure]

    @property
    def state(self) -> str:
        return STATES[self.config["state"]]

    @property
    def shown(self) -> int:
        return sum(claim.holds for claim in self.claims)


@dataclass(frozen=True)
class Ground:
    """The versions and the machine that some runs share."""

    names: list[str]
    versions: Mapping[str, str]
    machine: Mapping[str, str]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of one run, or of several in folders of their own, and return its path.

    **Raises:** `ValueError` where no run is in the folder.
    """
    page = render(read_runs(folder))
    path = folder / REPORT
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page of these runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mirrorjax.experiments", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": moment}
    begun = [run for run in runs if "versions" in run.config]
    return environment.get_template("report.html.jinja").render(runs=runs, begun=begun, grounds=grounds(begun))


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or those in folders of it: in the order that was planned for them, or by name.

    **Raises:** `ValueError` where there is none.
    """
    config = _read_config(folder)
    if "experiment" in config:
        return [read_run(folder, 1)]
    planned = config.get("experiments", [])
    found = {path.parent.name for path in folder.glob(f"*/{CONFIG}")}
    names = [*planned, *sorted(found - set(planned))]
    if not names:
        raise ValueError(
            f"{folder} holds no run: neither it nor a folder in it has a {CONFIG} of `mirrorjax reproduce`"
        )
    return [read_run(folder / name, number) for number, name in enumerate(names, 1)]


def read_run(folder: Path, number: int) -> Run:
    """What is on disk of one run; `number` tells it from others on the page."""
    config = _read_config(folder) or {"experiment": folder.name, "summary": "", "state": "not started"}
    return Run(
        anchor=f"run-{number}",
        name=config["experiment"],
        config=config,
        claims=_read_claims(folder / "claims.csv"),
        tables=_read_tables(folder, config.get("tables", [])),
        figures=_read_figures(folder, config.get("figures", {})),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return json.loads(path.read_text()) if path.exists() else {}


def _read_claims(path: Path) -> list[Claim]:
    if not path.exists():
        return []
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    return [Claim(row["statement"], row["paper"], row["ours"], row["holds"] == "True") for row in rows]


def _read_tables(folder: Path, shown: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that the run showed, as it showed them; then every other CSV file with all its columns."""
    files = {path.stem: path for path in sorted(folder.glob("*.csv")) if path.stem != "claims"}
    tables = []
    for view in shown:
        chosen = _read_csv(files[view["file"]]).iloc[view["rows"]][list(view["columns"])]
        tables.append(_table(view["title"], view["file"], chosen, list(view["columns"].values())))
    for name in sorted(set(files) - {view["file"] for view in shown}):
        whole = _read_csv(files[name])
        tables.append(_table(name.replace("_", " "), name, whole, [key.replace("_", " ") for key in whole.columns]))
    return tables


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def _table(title: str, file: str, frame: pd.DataFrame, headings: Sequence[str]) -> Table:
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    rows = [[as_text(value) for value in row] for row in frame.head(MOST_ROWS).itertuples(index=False, name=None)]
    columns = [Heading(text, number) for text, number in zip(headings, numeric, strict=True)]
    return Table(title, f"{file}.csv", columns, rows, len(frame))


def _read_figures(folder: Path, known: Mapping[str, Mapping[str, str]]) -> list[Figure]:
    """Every PNG file: first those the run tells about, in its order."""
    order = list(known)
    paths = sorted(folder.glob("*.png"), key=lambda path: (_position(path.stem, order), path.stem))
    return [_figure(path, known.get(path.stem, {"caption": "", "alt": path.stem.replace("_", " ")})) for path in paths]


def _position(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _figure(path: Path, words: Mapping[str, str]) -> Figure:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # where a PNG file has its size
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    scale = PIXELS_PER_INCH / DOTS_PER_INCH
    return Figure(path.name, source, round(width * scale), round(height * scale), words["caption"], words["alt"])


def grounds(runs: Sequence[Run]) -> list[Ground]:
    """Versions and machines, each with the runs that had them."""
    found: list[Ground] = []
    for run in runs:
        versions, machine = run.config["versions"], run.config["machine"]
        same = [ground for ground in found if (ground.versions, ground.machine) == (versions, machine)]
        if same:
            same[0].names.append(run.name)
        else:
            found.append(Ground([run.name], versions, machine))
    return found


def duration(seconds: float) -> str:
    """`seconds` as 8.3 s, 161 s, 12 min or 3.5 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def moment(iso: str) -> str:
    """A time in ISO format as 2025-04-28 09:03 UTC."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M UTC")
