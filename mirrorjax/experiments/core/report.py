"""Writes one HTML file on some runs from their folders alone: claims, tables, figures, versions.

It needs nothing beside it and nothing from the net: pictures, data, style and the library that sorts and searches
tables (DataTables, in `vendor`) are inside. The same folders give the same page, so it can be made again at any time,
and of a run that was interrupted too.
"""

import base64
import csv
import importlib.resources
import io
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ...files import write_text
from ..ledger import read_ledger
from .run import CONFIG
from .tables import Claim, as_text, parsed, read_rows

REPORT = "report.html"
MOST_ROWS = 40
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of every PNG file
DOTS_PER_INCH, PIXELS_PER_INCH = 150, 96  # of a saved figure, and of a page
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "lambda": "λ", "mu": "μ", "nu": "ν", "sigma": "σ"}
STATES = {
    "finished": "finished",
    "interrupted": "interrupted: only what was finished is here",
    "failed": "failed",
    "running": "not finished: still running, or killed",
    "not started": "not started",
}


@dataclass(frozen=True)
class Heading:
    """The heading of a column; `numeric` is true above numbers."""

    text: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Texts in rows under headings; `total` rows are in the file, of which the first ones may be all that is here.

    `anchor` is its id on the page, and `source` the whole file as a data URI, "" for none. If a column is headed
    `verdict`, its values can be chosen above the table.
    """

    title: str
    file: str
    headings: list[Heading]
    rows: list[list[str]]
    total: int
    anchor: str
    source: str = ""

    @property
    def verdict(self) -> int | None:
        """The number of the column of verdicts."""
        return next((number for number, each in enumerate(self.headings) if each.text == "verdict"), None)

    @property
    def verdicts(self) -> list[str]:
        return [] if self.verdict is None else list(dict.fromkeys(row[self.verdict] for row in self.rows))


@dataclass(frozen=True)
class Figure:
    """A picture as a data URI, its size on the page in pixels, its caption, and the text in its place.

    `anchor` is its id on the page.
    """

    name: str
    anchor: str
    source: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Run:
    """The content of the page on one run; `anchor` is its id on the page."""

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

    def links(self, claim: Claim) -> list[tuple[str, str]]:
        """Name and id of what shows a claim: the figures and tables that it names, or else all figures, all tables."""
        known = [(Path(each.name).stem, each.anchor) for each in self.figures]
        known += [(Path(each.file).stem, each.anchor) for each in self.tables]
        named = [(name, anchor) for wanted in claim.see.split() for name, anchor in known if name == wanted]
        parts = (("figures", self.figures), ("tables", self.tables))
        return named or [(name, f"{self.anchor}-{name}") for name, each in parts if each]


@dataclass(frozen=True)
class Environment:
    """The versions and the machine that some runs share."""

    names: list[str]
    versions: Mapping[str, str]
    machine: Mapping[str, str]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of one run, or of several in folders of their own, and return its path.

    **Raises:** `ValueError` where no run is in the folder.
    """
    runs = read_runs(folder)
    is_some_finished = any(run.config["state"] == "finished" for run in runs)
    page = render(runs, _ledger(folder, alone="experiment" in _read_config(folder)) if is_some_finished else None)
    path = folder / REPORT
    write_text(path, page)
    return path


def render(runs: Sequence[Run], ledger: Table | None = None) -> str:
    """The page of these runs."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("mirrorjax.experiments.core", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"duration": duration, "moment": moment, "formulas": formulas, "csv": as_csv}
    begun = [run for run in runs if "versions" in run.config]
    library = (
        importlib.resources.files("mirrorjax.experiments.core")
        .joinpath("vendor", "dataTables.min.js")
        .read_text("utf-8")
    )
    return templates.get_template("report.html.jinja").render(
        runs=runs, begun=begun, environments=environments(begun), ledger=ledger, library=markupsafe.Markup(library)
    )


def formulas(text: str) -> markupsafe.Markup:
    """Sets indices, powers, Greek letters and signs of a plain text as HTML: `W_K^T W_Q`, `e^(-2 lambda t)`, `<=`.

    An index follows a single letter or a bracket, so that names of variables such as `local_exponent` stay as they are.
    """
    html = str(markupsafe.escape(text))
    html = re.sub(r"(?<![\w.])([A-Za-z])_([A-Za-z0-9]+)(?![\w(])", r"<i>\1</i><sub>\2</sub>", html)
    html = re.sub(r"(?<=[\w)>*])\^(?:\(([^()]*)\)|([-+]?[A-Za-z0-9.]*[A-Za-z0-9]))", r"<sup>\1\2</sup>", html)
    html = re.sub(r"\)_\+", ")<sub>+</sub>", html)
    html = re.sub(rf"(?<![\w.])({'|'.join(GREEK)})(?![\w(=])", lambda found: GREEK[found[0]], html)
    return markupsafe.Markup(html.replace("&lt;=", "≤").replace("&gt;=", "≥"))  # escaped above


def _ledger(folder: Path, alone: bool) -> Table | None:
    """The ledger of the paper with what the runs of a folder measured of it: the whole of it for several runs, for one
    the claims that it measures."""
    rows = [row for row in read_ledger(folder) if not alone or row.holds is not None]
    if all(row.holds is None for row in rows):
        return None
    heads = ("claim of the paper", "where", "paper", "here", "preset", "verdict")
    texts = [
        [
            row.said.statement,
            row.said.where,
            row.said.paper or "-",
            row.ours or row.missing,
            row.preset or "-",
            "not measured" if row.holds is None else row.verdict,
        ]
        for row in rows
    ]
    source = _csv_uri([dict(zip(heads, row, strict=True)) for row in texts])
    title = "The ledger: claims of the paper, and what these runs measured of them"
    return Table(title, "ledger.csv", [Heading(text, False) for text in heads], texts, len(texts), "ledger-all", source)


def as_csv(runs: Sequence[Run]) -> str:
    """All claims of some runs as a data URI of a CSV file."""
    return _csv_uri([{"experiment": run.name, **asdict(claim)} for run in runs for claim in run.claims])


def _csv_uri(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["experiment"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return _data_uri(text.getvalue().encode(), "text/csv")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or those in folders of it: in the order that was planned for them, or by name.

    **Raises:** `ValueError`, naming the file, where there is none, or where a file is not as a run writes it.
    """
    config = _read_config(folder)
    if "experiment" in config:
        return [read_run(folder, 1)]
    planned = config.get("experiments", [])
    if not _is_texts(planned):
        raise ValueError(f"{folder / CONFIG}: `experiments` must be a list of names, got {planned!r}")
    found = {path.parent.name for path in folder.glob(f"*/{CONFIG}")}
    names = [*planned, *sorted(found - set(planned))]
    if not names:
        raise ValueError(
            f"{folder} holds no run: neither it nor a folder in it has a {CONFIG} of `mirrorjax reproduce`"
        )
    return [read_run(folder / name, number) for number, name in enumerate(names, 1)]


def read_run(folder: Path, number: int) -> Run:
    """Reads one run from its folder; `number` tells the run from others on the page."""
    config = _read_config(folder) or {"experiment": folder.name, "summary": "", "state": "not started"}
    anchor = f"run-{number}"
    with _foreign(folder / CONFIG):
        _check(config)
    with _foreign(folder / "claims.csv"):
        claims = _read_claims(folder / "claims.csv")
    with _foreign(folder / CONFIG):
        tables = _read_tables(folder, config.get("tables", []), anchor)
    return Run(
        anchor=anchor,
        name=config["experiment"],
        config=config,
        claims=claims,
        tables=tables,
        figures=_read_figures(folder, config.get("figures", {}), anchor),
    )


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Turns what reading a file of another shape ends in into one line that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        words = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not as `mirrorjax reproduce` writes it: {words}") from error


def _check(config: Mapping[str, Any]) -> None:
    """Reads every entry of a run's config that the page shows; an error says which is missing or of another kind."""
    kinds = {"experiment": str, "summary": str, "state": str}
    if config["state"] != "not started":
        kinds |= {"preset": str, "seed": int, "bits": int, "started": str, "seconds": int | float}
        kinds |= {"versions": dict, "machine": dict}
    for name, kind in kinds.items():
        if not isinstance(config[name], kind):
            raise TypeError(f"{name} = {config[name]!r}")
    STATES[config["state"]]
    if "started" in kinds:
        try:
            moment(config["started"])
        except ValueError:
            raise TypeError(f"started = {config['started']!r}") from None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, as `mirrorjax reproduce` writes it: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not as `mirrorjax reproduce` writes it: it must be a mapping, got {config!r}")
    return config


def _read_claims(path: Path) -> list[Claim]:
    if not path.exists():
        return []
    return [
        Claim(
            row["statement"],
            row["paper"],
            row["ours"],
            row["holds"] == "True",
            key=row.get("key", ""),
            see=row.get("see", ""),
        )
        for row in read_rows(path)
    ]


def _read_tables(folder: Path, shown: Sequence[Mapping[str, Any]], run: str) -> list[Table]:
    """The tables that the run showed, as it showed them; then every other CSV file with all its columns."""
    files = {path.stem: path for path in sorted(folder.glob("*.csv")) if path.stem != "claims"}
    tables = []
    for view in shown:
        if view["file"] not in files:
            raise ValueError(f"{folder / view['file']}.csv is missing, which {CONFIG} names; run the experiment again")
        whole = read_rows(files[view["file"]])
        rows = [whole[number] for number in view["rows"]]
        tables.append(_table(view["title"], files[view["file"]], rows, view["columns"], f"{run}-table-{len(tables)}"))
    for name in sorted(set(files) - {view["file"] for view in shown}):
        rows = read_rows(files[name])
        headings = {key: key.replace("_", " ") for key in (rows[0] if rows else ())}
        tables.append(_table(name.replace("_", " "), files[name], rows, headings, f"{run}-table-{len(tables)}"))
    return tables


def _table(
    title: str, file: Path, rows: Sequence[Mapping[str, str]], headings: Mapping[str, str], anchor: str
) -> Table:
    """The chosen columns of these rows; `headings`: by key, the heading of each column."""
    columns = [parsed([row[key] for row in rows]) for key in headings]
    shown = [[as_text(values[number]) for values, _ in columns] for number in range(min(len(rows), MOST_ROWS))]
    above = [Heading(text, numeric) for text, (_, numeric) in zip(headings.values(), columns, strict=True)]
    return Table(title, file.name, above, shown, len(rows), anchor, _data_uri(file.read_bytes(), "text/csv"))


def _read_figures(folder: Path, known: Mapping[str, Mapping[str, str]], run: str) -> list[Figure]:
    """Every PNG file: first those the run tells about, in its order."""
    order = list(known)
    paths = sorted(folder.glob("*.png"), key=lambda path: (_position(path.stem, order), path.stem))
    plain = [known.get(path.stem, {"caption": "", "alt": path.stem.replace("_", " ")}) for path in paths]
    return [_figure(path, words, f"{run}-figure-{i}") for i, (path, words) in enumerate(zip(paths, plain, strict=True))]


def _position(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _figure(path: Path, words: Mapping[str, str], anchor: str) -> Figure:
    data = path.read_bytes()
    if not data.startswith(PNG) or len(data) < 24:
        raise ValueError(f"{path} is not a PNG file, or is damaged; remove it, or run the experiment again")
    width, height = struct.unpack(">II", data[16:24])  # where a PNG file has its size
    scale = PIXELS_PER_INCH / DOTS_PER_INCH
    size = round(width * scale), round(height * scale)
    return Figure(path.name, anchor, _data_uri(data, "image/png"), *size, words["caption"], words["alt"])


def environments(runs: Sequence[Run]) -> list[Environment]:
    """Versions and machines, each with the runs that had them."""
    found: list[Environment] = []
    for run in runs:
        versions, machine = run.config["versions"], run.config["machine"]
        same = [each for each in found if (each.versions, each.machine) == (versions, machine)]
        if same:
            same[0].names.append(run.name)
        else:
            found.append(Environment([run.name], versions, machine))
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
