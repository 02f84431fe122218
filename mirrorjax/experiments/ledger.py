"""The ledger of the paper's claims, figures and tables: what it says, where, and what was measured here.

`ledger.toml` holds the statements, the paper's values, and for each the experiment and the key of the claim that
measures it. `measured.json` holds the claims of finished runs; no verdict and no number in it is typed in:

    python -m mirrorjax.experiments.ledger RUNS      # RUNS: the folder of one run, or of several

replaces in it the runs of the same experiment and preset. `read_ledger` joins the two, and `read_ledger(folder)` joins
the statements with the runs of a folder instead. Only the standard library is imported here.
"""

import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..files import write_text
from .core.tables import read_rows
from .table import EXPERIMENTS

HERE = Path(__file__).parent
STATEMENTS, MEASURED = HERE / "ledger.toml", HERE / "measured.json"
KEPT = ("experiment", "preset", "seed", "bits", "started", "seconds", "versions", "machine", "commit")
MOST_SHOWN = 3  # measurements of one row, which several claims may share


@dataclass(frozen=True)
class Statement:
    """A claim of the paper: the statement, its place there, the paper's value, and the claims that measure it.

    `experiment` and `key` name the claims of a run: `key` is theirs, or, for claims without one, their statement with *
    for anything. `needs` says what a measurement needs that two cores do not have, where there is none.
    """

    statement: str
    where: str
    paper: str = ""
    experiment: str = ""
    key: str = ""
    needs: str = ""

    def is_measured_by(self, claim: Mapping[str, Any]) -> bool:
        """True for a claim of a run of the experiment that measures this statement."""
        return fnmatchcase(claim["key"] or claim["statement"], self.key)


@dataclass(frozen=True)
class Row:
    """A statement with its measurement: the preset of the run, whether it holds there, and the number."""

    said: Statement
    preset: str = ""
    ours: str = ""
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """`shown`, `NOT shown`, or the reason why it is not measured."""
        if self.holds is not None:
            return "shown" if self.holds else "NOT shown"
        return f"not measured: {self.missing}"

    @property
    def missing(self) -> str:
        """The reason why there is no measurement: what one needs, or that no run is recorded."""
        return self.said.needs or "no run of the experiment is recorded"


@dataclass(frozen=True)
class Picture:
    """A figure or a table of the paper, and ours: its experiment and file, and how the setting differs if it does."""

    number: str
    paper: str
    experiment: str = ""
    file: str = ""
    same: bool = False
    setting: str = ""


@dataclass(frozen=True)
class Choice:
    """A number of a setting: printed in the paper, or recovered by reproducing the paper's numbers."""

    experiment: str
    name: str
    value: str
    printed: bool


@dataclass(frozen=True)
class NotRun:
    """A preset that was not run to its end, and the reason: the time that it takes, or what it needs."""

    experiment: str
    preset: str
    why: str


def statements() -> list[Statement]:
    """The claims of the paper, in its order."""
    return [Statement(**each) for each in _load()["claim"]]


def pictures() -> list[Picture]:
    """The figures and tables of the paper, in its order."""
    return [Picture(**each) for each in _load()["picture"]]


def choices() -> list[Choice]:
    """The settings of the experiments, each printed in the paper or recovered."""
    return [Choice(**each) for each in _load()["setting"]]


def not_run() -> list[NotRun]:
    """The presets that were not run to their end."""
    return [NotRun(**each) for each in _load().get("not_run", ())]


def read_ledger(folder: Path | None = None) -> list[Row]:
    """Joins every statement with its measurement in the runs of a folder, or in the recorded ones.

    Of several presets the one of the largest size counts. A statement that several claims measure holds if all do.

    **Arguments:** `folder`: of one run, or of several in folders of their own; `None` for the runs of `measured.json`.
    **Raises:** `ValueError`, naming the file, for a folder without runs, or a file that is not as a run writes it.
    """
    runs = _recorded() if folder is None else _read_runs(Path(folder))
    return [_measured(said, runs) for said in statements()]


def record(folder: Path) -> list[str]:
    """Puts the finished runs of a folder into `measured.json`, and returns a line on each.

    **Raises:** as `read_ledger`.
    """
    found = [_shortened(run) for run in _read_runs(Path(folder))]
    replaced = {(run["experiment"], run["preset"]) for run in found}
    kept = [run for run in _recorded() if (run["experiment"], run["preset"]) not in replaced]
    order = list(EXPERIMENTS)
    runs = sorted([*kept, *found], key=lambda run: (order.index(run["experiment"]), run["preset"]))
    write_text(MEASURED, json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n")
    return [f"{run['experiment']} ({run['preset']}): {len(run['claims'])} claims of the ledger" for run in found]


def _load() -> dict[str, Any]:
    return tomllib.loads(STATEMENTS.read_text(encoding="utf-8"))


def _recorded() -> list[dict[str, Any]]:
    return json.loads(MEASURED.read_text(encoding="utf-8"))["runs"] if MEASURED.exists() else []


def _read_runs(folder: Path) -> list[dict[str, Any]]:
    """The finished runs in a folder, each with its claims."""
    paths = [path for path in (folder / "config.json", *sorted(folder.glob("*/config.json"))) if path.exists()]
    configs = [(path.parent, _config(path)) for path in paths]
    runs = [_run(where, config) for where, config in configs if config.get("state") == "finished"]
    if not runs:
        raise ValueError(
            f"{folder} holds no finished run of `mirrorjax reproduce`; give the folder of one, or of several"
        )
    return runs


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, as `mirrorjax reproduce` writes it: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not as `mirrorjax reproduce` writes it: it must be a mapping, got {config!r}")
    return config


def _run(where: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [name for name in KEPT if name not in config]:
        raise ValueError(f"{where / 'config.json'} is not as `mirrorjax reproduce` writes it: it has no {missing[0]!r}")
    path = where / "claims.csv"
    claims = [
        {"key": row.get("key", ""), "statement": row["statement"], "ours": row["ours"], "holds": row["holds"] == "True"}
        for row in (read_rows(path) if path.exists() else [])
    ]
    return {name: config[name] for name in KEPT} | {"claims": claims}


def _shortened(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run with the claims of the ledger alone."""
    mine = [said for said in statements() if said.experiment == run["experiment"]]
    return {**run, "claims": [claim for claim in run["claims"] if any(said.is_measured_by(claim) for said in mine)]}


def _measured(said: Statement, runs: Sequence[Mapping[str, Any]]) -> Row:
    """The row of a statement, from the run of the largest size that has its key."""
    if not said.experiment:
        return Row(said)
    presets = EXPERIMENTS[said.experiment].presets
    mine = sorted(
        (run for run in runs if run["experiment"] == said.experiment and run["preset"] in presets),
        key=lambda run: presets.index(run["preset"]),
    )
    for run in mine:
        claims = [claim for claim in run["claims"] if said.is_measured_by(claim)]
        if claims:
            ours = [claim["ours"] for claim in claims]
            more = f"; and {len(ours) - MOST_SHOWN} more" if len(ours) > MOST_SHOWN else ""
            holds = all(claim["holds"] for claim in claims)
            return Row(said, run["preset"], "; ".join(ours[:MOST_SHOWN]) + more, holds)
    return Row(said)


def claims_table() -> str:
    """The ledger as a table in Markdown."""
    heads = ("claim", "where", "paper", "here", "experiment", "verdict")
    return _table(
        heads,
        [
            (
                row.said.statement,
                row.said.where,
                row.said.paper or "-",
                row.ours or "-",
                f"{row.said.experiment} ({row.preset})" if row.preset else row.said.experiment or "-",
                f"**{row.verdict}**" if row.holds is False else row.verdict,
            )
            for row in read_ledger()
        ],
    )


def pictures_table() -> str:
    """The figures and tables of the paper beside ours, in Markdown."""
    rows = []
    for each in pictures():
        file = f"`{each.experiment}`: `{each.file}`" if each.file else "none"
        rows.append((each.number, each.paper, file, "same" if each.same else each.setting))
    return _table(("paper", "what it shows", "ours", "setting"), rows)


def choices_table() -> str:
    """The settings, in Markdown."""
    rows = [(each.experiment, each.name, each.value, "printed" if each.printed else "recovered") for each in choices()]
    return _table(("experiment", "setting", "value", "in the paper"), rows)


def runs_table() -> str:
    """The recorded runs, in Markdown, with the time and the machine of each; and the presets that were not run."""
    rows = [
        (
            run["experiment"],
            run["preset"],
            str(run["seed"]),
            f"{run['seconds']:g} s",
            run["started"],
            run["commit"],
            f"{run['machine']['processor']}, {run['machine']['cores']} cores",
        )
        for run in _recorded()
    ]
    rows += [(each.experiment, each.preset, "-", f"not run: {each.why}", "-", "-", "-") for each in not_run()]
    return _table(("experiment", "preset", "seed", "time", "started", "commit", "machine"), rows)


def counts() -> str:
    """How many rows have which verdict, in one sentence."""
    rows = read_ledger()
    shown, not_shown = (sum(row.holds is value for row in rows) for value in (True, False))
    return f"{len(rows)} claims: {shown} shown, {not_shown} not shown, {len(rows) - shown - not_shown} not measured."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m mirrorjax.experiments.ledger FOLDER")
    try:
        print("\n".join([*record(Path(sys.argv[1])), counts()]))
    except ValueError as problem:
        raise SystemExit(f"Error: {problem}") from None
