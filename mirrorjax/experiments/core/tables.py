"""Tables of a run: claims, rows in CSV files, and the text of their values."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its value there and here, and whether this run shows it.

    `key` names the claim in the ledger of the paper's claims, whatever words the statement has; several claims of one
    experiment may share a key, as by two methods. It is empty for claims that the ledger does not hold.
    `see`: the names of the figures and tables of the run that show it, with spaces between them.
    """

    statement: str
    paper: str
    ours: str
    holds: bool
    key: str = ""
    see: str = ""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a heading line and one line a row; missing values, None or NaN, are empty.

    The columns are the keys of all rows, in the order in which they first appear.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_written(row.get(key)) for key in columns] for row in rows)


def _written(value: Any) -> Any:
    return "" if value is None or value != value else value


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as texts, by the headings of their columns.

    **Raises:** `ValueError`, in one line with the path, for a row that has more or fewer entries than the heading, and
    for a file that is not CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            rows = [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if ragged := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"{path} has a row of {len(ragged[0])} entries under {len(columns)} headings")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def parsed(texts: Sequence[str]) -> tuple[list[Any], bool]:
    """The values of a column that was read from a CSV file, and whether all of them are numbers.

    Empty texts are missing values: None. A column with a text that is no number stays as it was written.
    """
    try:
        return [float(text) if text else None for text in texts], True
    except ValueError:
        return [text if text else None for text in texts], False


def as_text(value: Any) -> str:
    """The text of a table's value: four digits for a number, "-" for a missing one."""
    if isinstance(value, str | bool):
        return str(value)
    if value is None or value != value:
        return "-"
    size = abs(value)
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.4g}"
