"""Table: rows of named values that print as an aligned table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload


@dataclass(frozen=True)
class Table(Sequence[dict[str, Any]]):
    """A sequence of rows, each a dictionary from column to value; `print` shows them aligned, numbers to the right.

    `pandas.DataFrame(table)` and `csv.DictWriter(..).writerows(table)` take it as it is.

    **Arguments:** `rows`: dictionaries with the same keys in the same order.

    Example:

        print(nn.Table(({"tensor": "kernel", "ratio": 1.73},)))
    """

    rows: tuple[dict[str, Any], ...]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "no rows"
        columns = list(self.rows[0])
        cells = [columns, *([_text(row[column]) for column in columns] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = [all(_is_number(row[column]) for row in self.rows) for column in columns]
        lines = (
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in cells
        )
        return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return not isinstance(value, str | Mapping | Sequence)


def _text(value: Any) -> str:
    """A cell: strings as they are, whole numbers in full, others to four digits."""
    if isinstance(value, str) or not hasattr(value, "__float__") or isinstance(value, int):
        return str(value)
    return f"{float(value):.4g}"
