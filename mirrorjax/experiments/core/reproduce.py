"""Runs experiments, one or all of them one after the other, each in its folder and with its report."""

import json
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ...files import write_text
from ...signals import Terminated, raise_if_stopped, stoppable
from ..table import EXPERIMENTS
from .experiment import Experiment, Setting
from .folders import exists, make_folder
from .report import read_runs, write_report
from .run import CONFIG, RunFolder, is_finished


def reproduce(
    experiment: Experiment | str,
    path: str | Path,
    setting: Setting | None = None,
    console: Console | None = None,
    *,
    resume: bool = False,
) -> RunFolder:
    """Runs an experiment in a new folder and writes its report, however it ends; config.json keeps a failure's
    traceback.

    **Arguments:** `experiment`: an `Experiment`, or the name of one in `EXPERIMENTS`; `path`: a folder that does not
    exist yet; `setting`: preset, seed and precision, by default the experiment's first preset, its own seed, and the
    precision that jax is set to; `console`: where claims and tables are printed, by default the standard output;
    `resume`: go on with the interrupted run in the folder. Trainings of networks continue from their checkpoints;
    everything else is computed again.
    **Returns:** the folder, with its `claims` and its `path`.
    **Raises:** the experiment's own exceptions, `ValueError` for a name or a preset that does not exist and for a
    folder without such an unfinished run to resume, and `OSError` where the folder exists or cannot be made.
    """
    chosen = _find(experiment) if isinstance(experiment, str) else experiment
    setting = _usual(chosen) if setting is None else setting
    if setting.preset not in chosen.presets:
        raise ValueError(f"{chosen.name} has no preset {setting.preset!r}; it has: {', '.join(chosen.presets)}")
    run, path = chosen.load(), Path(path)
    with stoppable():
        console = Console() if console is None else console
        folder = RunFolder(path, chosen.name, setting, console, chosen.summary, resume=resume)
        _run(run, folder, setting)
    return folder


def _run(run: Callable[..., None], folder: RunFolder, setting: Setting) -> None:
    """Runs an experiment in its folder; the folder says how it ended, and has its report, however it did."""
    try:
        run(folder, setting)
        raise_if_stopped()
        folder.require_shown()
    except (KeyboardInterrupt, Terminated):
        folder.finish("interrupted")
        raise
    except Exception as error:
        folder.finish("failed", error=_message(error), traceback=traceback.format_exc())
        raise
    else:
        folder.finish("finished")
    finally:
        write_report(folder.path)


def _find(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _usual(experiment: Experiment) -> Setting:
    bits = 64 if jax.config.read("jax_enable_x64") else 32
    return Setting(experiment.presets[0], experiment.seed, bits)


def reproduce_all(
    experiments: Sequence[Experiment],
    path: Path,
    preset: str,
    seed: int | None,
    bits: int,
    console: Console,
    *,
    resume: bool = False,
) -> list[str]:
    """Runs experiments one after the other, each in a folder of its own inside a new one, with one report of all.

    An experiment that fails does not stop the others. The report is written anew after each of them.

    **Arguments:** `seed`: of all data; each experiment's own where `seed` is `None`; `resume`: the folder is one of
    these, whose finished experiments stay as they are.
    **Returns:** the names of the experiments that failed.
    **Raises:** `OSError` where the folder exists or cannot be made; `ValueError` for one to resume that does not exist.
    """
    if not resume:
        make_folder(path)
    elif not exists(path):
        raise ValueError(f"there is no folder {path} of runs to go on with; start them without --resume")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    plan = json.dumps({"experiments": [each.name for each in experiments], "started": started}, indent=2)
    write_text(path / CONFIG, plan + "\n")
    failed = []
    for number, experiment in enumerate(experiments, 1):
        console.rule(f"{escape(experiment.name)} ({number} of {len(experiments)})")
        setting = Setting(preset, experiment.seed if seed is None else seed, bits)
        found = path / experiment.name
        if resume and is_finished(found, experiment.name, setting):
            console.print("finished before", highlight=False)
            continue
        try:
            reproduce(experiment, found, setting, console, resume=resume and exists(found))
        except Exception as error:
            failed.append(experiment.name)
            message = f"[red]{escape(experiment.name)} failed:[/red] {escape(_message(error))}"
            console.print(message, highlight=False, soft_wrap=True)
        finally:
            write_report(path)
        # Compiled programs take memory maps, of which a process has so many; the next experiment has others.
        jax.clear_caches()
    return failed


def print_summary(path: Path, console: Console) -> None:
    """Prints a line for each run in a folder: claims shown, seconds, and the state in which the run ended."""
    table = Table("experiment", "claims shown", Column("seconds", justify="right"), "state", box=box.SIMPLE_HEAD)
    for run in read_runs(path):
        claims = f"{run.shown} of {len(run.claims)}"
        table.add_row(escape(run.name), claims, f"{run.config.get('seconds', 0.0):.0f}", run.config["state"])
    console.print(table)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
