"""Running experiments: one, or all of them one after the other, each in its folder and with its report."""

import json
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .report import read_runs, write_report
from .run import CONFIG, Experiment, RunFolder, Setting, make_folder, write_whole


def reproduce(experiment: Experiment, path: Path, setting: Setting, console: Console) -> None:
    """Run an experiment in a new folder, and write its report however it ends; the config keeps a failure's traceback.

    **Raises:** what the experiment raises, and `OSError` where the folder exists or cannot be made.
    """
    folder = RunFolder(path, experiment.name, setting, console, experiment.summary)
    try:
        experiment.run(folder, setting)
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    except Exception as error:
        folder.finish("failed", error=_message(error), traceback=traceback.format_exc())
        raise
    else:
        folder.finish("finished")
    finally:
        write_report(path)


def reproduce_all(
    experiments: Sequence[Experiment], path: Path, preset: str, seed: int | None, bits: int, console: Console
) -> list[str]:
    """Run experiments one after the other, each in a folder of its own inside a new one, with one report of all.

    One that fails does not stop the others. The report is written anew after each of them.

    **Arguments:** `seed`: of all data; each experiment's own where it is `None`.
    **Returns:** the names of those that failed.
    **Raises:** `OSError` where the folder exists or cannot be made.
    """
    make_folder(path)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    plan = json.dumps({"experiments": [each.name for each in experiments], "started": started}, indent=2)
    write_whole(path / CONFIG, lambda temporary: temporary.write_text(plan + "\n"))
    failed = []
    for number, experiment in enumerate(experiments, 1):
        console.rule(f"{experiment.name} ({number} of {len(experiments)})")
        setting = Setting(preset, experiment.seed if seed is None else seed, bits)
        try:
            reproduce(experiment, path / experiment.name, setting, console)
        except Exception as error:
            failed.append(experiment.name)
            message = f"[red]{experiment.name} failed:[/red] {escape(_message(error))}"
            console.print(message, highlight=False, soft_wrap=True)
        finally:
            write_report(path)
        # Compiled programs take memory maps, of which a process has so many; the next experiment has others.
        jax.clear_caches()
    return failed


def print_summary(path: Path, console: Console) -> None:
    """Print a line for each run in a folder: claims shown, seconds, how it ended."""
    table = Table("experiment", "claims shown", Column("seconds", justify="right"), "state", box=box.SIMPLE_HEAD)
    for run in read_runs(path):
        claims = f"{run.shown} of {len(run.claims)}"
        table.add_row(run.name, claims, f"{run.config.get('seconds', 0.0):.0f}", run.config["state"])
    console.print(table)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
