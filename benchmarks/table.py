"""The tables of README.md from the JSON of a run: `python benchmarks/table.py benchmarks/results/geometry-cpu.json`."""

import json
import sys
from pathlib import Path
from typing import Any


def table(record: dict[str, Any]) -> str:
    """Machine and commit, then one row a benchmark: median, slowest and fastest run, compilation, and what it kept."""
    machine = ", ".join(f"{name} {value}" for name, value in record["machine_info"].items())
    commit = record["commit_info"]
    state = " with uncommitted changes" if commit["dirty"] else ""
    rows = [
        f"Machine: {machine}.",
        f"Commit: `{commit['id']}`{state}. Date: {record['datetime'][:10]}.",
        "",
        "| benchmark | median s | min to max s | rounds | compile s | recorded |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(rows + [row(benchmark) for benchmark in record["benchmarks"]])


def row(benchmark: dict[str, Any]) -> str:
    stats, extra = benchmark["stats"], dict(benchmark["extra_info"])
    compile_seconds = extra.pop("compile_seconds")
    kept = ", ".join(f"{name} {number(value)}" for name, value in extra.items())
    spread = f"{number(stats['min'])} to {number(stats['max'])}"
    cells = [benchmark["name"], number(stats["median"]), spread, str(stats["rounds"]), number(compile_seconds), kept]
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


if __name__ == "__main__":
    print("\n\n".join(table(json.loads(Path(path).read_text())) for path in sys.argv[1:]))
