"""The tables of README.md from the JSON of a run: `python benchmarks/table.py benchmarks/results/geometry-cpu.json`."""

import json
import sys
from pathlib import Path
from typing import Any

COMPARED = "matrix sensing"  # the group whose members compute one thing, and are compared with ours
OURS = "mirrorjax"
RATIO_COLUMNS = {
    "seconds_a_lane": "s a lane",
    "lanes": "lanes",
    "relative_error": "error of X",
    "diverged": "diverged",
    "evaluations": "evaluations a lane",
    "compile_seconds": "compile s",
}


def table(record: dict[str, Any]) -> str:
    """Machine and commit, then one row a benchmark: median, slowest and fastest run, compilation, and what it kept."""
    machine = ", ".join(f"{name} {value}" for name, value in record["machine_info"].items())
    commit = record["commit_info"]
    state = " with uncommitted changes" if commit["dirty"] else ""
    rows = [
        f"Machine: {machine}.",
        f"Commit: `{commit['id']}`{state}. Date: {record['datetime'][:10]}.",
        *ratio_table([benchmark for benchmark in record["benchmarks"] if benchmark["group"] == COMPARED]),
        "",
        "| benchmark | median s | min to max s | rounds | compile s | recorded |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(rows + [row(benchmark) for benchmark in record["benchmarks"]])


def ratio_table(compared: list[dict[str, Any]]) -> list[str]:
    """Seconds a lane of each way, and how many times those of our ways they are; nothing for no ways."""
    if len(compared) < 2:
        return []
    names = [benchmark["params"]["name"] for benchmark in compared]
    seconds = {name: benchmark["extra_info"]["seconds_a_lane"] for name, benchmark in zip(names, compared, strict=True)}
    ours = [name for name in names if name.startswith(OURS)]
    titles = ["", *RATIO_COLUMNS.values(), *(f"times {name}" for name in ours)]
    rows = ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, benchmark in zip(names, compared, strict=True):
        extra = benchmark["extra_info"]
        ratios = [seconds[name] / seconds[other] for other in ours]
        cells = [number(value) for value in [*(extra.get(key, "-") for key in RATIO_COLUMNS), *ratios]]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def row(benchmark: dict[str, Any]) -> str:
    stats, extra = benchmark["stats"], dict(benchmark["extra_info"])
    compile_seconds = extra.pop("compile_seconds", "-")
    kept = ", ".join(f"{name} {number(value)}" for name, value in extra.items())
    spread = f"{number(stats['min'])} to {number(stats['max'])}"
    cells = [benchmark["name"], number(stats["median"]), spread, str(stats["rounds"]), number(compile_seconds), kept]
    return f"| {' | '.join(cells)} |"


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print("\n\n".join(table(json.loads(Path(path).read_text())) for path in sys.argv[1:]))
