"""The tables of README.md from the JSON of a run: `python benchmarks/table.py benchmarks/results/geometry-cpu.json`.

With `--bars docs/_static/workloads.svg` it draws how many times faster than the plain way each row is, those of
`first_answer.py` included: `python benchmarks/table.py --bars FILE.svg workloads-cpu.json first-answer-cpu.json`.
"""

import argparse
import json
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
    date = f" Date: {record['datetime'][:10]}." if "datetime" in record else ""
    head = [f"Machine: {machine}.", f"Commit: `{commit['id']}`{state}.{date}"]
    if "benchmarks" not in record:  # of first_answer.py or growth.py, which have columns of their own
        return "\n".join([*head, "", *plain_table(record.get("cpu_seconds") or record["rows"])])
    rows = [
        *head,
        *ratio_table([benchmark for benchmark in record["benchmarks"] if benchmark["group"] == COMPARED]),
        "",
        "| benchmark | median s | min to max s | rounds | compile s | recorded |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(rows + [row(benchmark) for benchmark in record["benchmarks"]])


def plain_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of a record as they are, three digits a number."""
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    titles = [name.replace("_", " ") for name in rows[0]]
    return [f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *cells]]


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


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """The seconds of the plain way over those of each row that is compared with it, in one run."""
    if "cpu_seconds" in record:  # a record of first_answer.py
        return {f"W10 first {row['task']}": 1 / row["ratio"] for row in record["cpu_seconds"]}
    found = {}
    for benchmark in record["benchmarks"]:
        extra, way = benchmark["extra_info"], (benchmark["params"] or {}).get("way")
        if "times_plain" in extra and way not in ("plain", "pieces"):
            # Against the plain way whose gradients are right, where there is one whose are not.
            found[f"{extra['workload']} {way}"] = extra.get("times_right", extra["times_plain"])
    return found


def draw_bars(records: list[dict[str, Any]], file: Path) -> None:
    """One bar a row, on a logarithmic axis: to the right of 1 are the rows that are faster than the plain way."""
    from matplotlib.figure import Figure

    bars = {name: ratio for record in records for name, ratio in ratios(record).items()}
    figure = Figure(figsize=(7, 0.6 + 0.26 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars), 0, -1)
    axes.barh(places, [value - 1 for value in bars.values()], left=1, height=0.6)
    for place, value in zip(places, bars.values(), strict=True):
        axes.annotate(f" {value:.2g} ", (value, place), va="center", ha="left" if value >= 1 else "right", fontsize=8)
    axes.set(xscale="log", yticks=list(places), yticklabels=list(bars), xlabel="seconds of the plain way / seconds")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, help="JSON files of runs")
    parser.add_argument("--bars", type=Path, help="file to draw the ratios to, instead of printing tables")
    arguments = parser.parse_args()
    records = [json.loads(path.read_text()) for path in arguments.records]
    if arguments.bars:
        draw_bars(records, arguments.bars)
    else:
        print("\n\n".join(map(table, records)))


if __name__ == "__main__":
    main()
