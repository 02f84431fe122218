"""The command line as a user meets it, with its exit status and its messages.

Most commands run in this process, where jax is loaded. A process of its own takes seconds, so only those tests have one
that stop it by a signal or look at its exit status.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from command_line import Done

import mirrorjax as mj
from mirrorjax.cli import commands
from mirrorjax.experiments import EXPERIMENTS, Experiment

COMMAND = [sys.executable, "-c", "from mirrorjax.cli import main; main()"]
# One fresh environment: a terminal of 100 columns, no flags from the test session.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"} | {"COLUMNS": "100"}


def in_a_process(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    how = {"capture_output": True, "text": True, "timeout": 300, "check": False, "cwd": cwd}
    return subprocess.run([*COMMAND, *arguments], env=ENVIRONMENT | environment, **how)


@contextmanager
def started(cwd: Path, *command: str) -> Iterator[subprocess.Popen]:
    """A process that a test stops by a signal. It is killed where the signal failed, and would run for ever."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen, number: int, file: Path) -> str:
    """Sends the signal once the file is there, and returns what the process wrote to stderr."""
    deadline = time.monotonic() + 200
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate(timeout=100)[1]


def test_help_names_every_command(mirrorjax):
    done = mirrorjax("--help")
    assert done.returncode == 0
    for word in ("reproduce", "report", "list", "explain", "spectra", "bias", "sweep", "status", "resume", "--version"):
        assert word in done.stdout


def test_help_shows_square_brackets(mirrorjax):
    shown = " ".join(mirrorjax("sweep", "--help").stdout.split())
    assert "[grid]" in shown
    assert "[default: runs/FILE-TIME]" in shown


def test_version_and_list(mirrorjax):
    assert mirrorjax("--version").stdout.startswith("mirrorjax 0.")
    listed = mirrorjax("list").stdout
    assert "matrix-sensing" in listed
    assert "all" in listed.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "sensing"], f"there is no experiment 'sensing'; there are: {', '.join(EXPERIMENTS)}, all"),
        (["reproduce", "matrix-sensing", "--preset", "big"], "'big' is not one of"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["explain", "cubic", "-i", "1"], "there is no family 'cubic'; there are: hadamard"),
        (["explain", "hadamard", "-i", "1", "-i", "1"], "R_a needs |m0| != |w0|"),
        (
            ["explain", "hadamard", "-i", "1", "-i", "0", "--alpha", "-2"],
            "alpha must be finite and non-negative, got -2",
        ),
        (["explain", "hadamard", "-i", "1", "-i", "0", "--t-off", "nan"], "t_off must be non-negative, got nan"),
        (["explain", "hadamard", "-i", "1", "-i", "0", "--schedule", "steps"], "there is no schedule 'steps'"),
        (["explain", "hadamard", "-i", "1", "-i", "0", "--t1", "0"], "the last time must be positive"),
        (["explain", "square", "-i", "-1"], "needs w0 > 0"),
    ],
)
def test_bad_arguments_exit_2_with_one_message(mirrorjax, arguments, words, tmp_path):
    done = mirrorjax(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_square_brackets_of_a_message_are_printed(mirrorjax, tmp_path):
    done = mirrorjax("resume", "runs[old]")
    assert done.returncode == 2
    assert "runs[old] is not the folder of `mirrorjax sweep`" in " ".join(done.stderr.split())


def test_an_existing_folder_is_refused_and_untouched(mirrorjax, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    done = mirrorjax("reproduce", "all", "--out", "mine")
    assert done.returncode == 2
    assert "the folder mine exists" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def fine(folder, setting):
    folder.claim(f"float{setting.bits} and seed {setting.seed}", paper="-", ours="yes", holds=True)


def broken(folder, setting):
    raise RuntimeError("it broke [here]")


def stopped(folder, setting):
    raise KeyboardInterrupt


@pytest.fixture
def reproduce_few(mirrorjax, monkeypatch) -> Callable[..., Done]:
    """`mirrorjax reproduce all` where the table holds a few experiments that take no time."""
    runs = {"fine": fine, "broken": broken, "stopped": stopped}

    def run(*chosen: str) -> Done:
        few = {name: Experiment(name, name, runs[name]) for name in chosen}
        with monkeypatch.context() as patch:
            patch.setattr(commands, "EXPERIMENTS", few)
            return mirrorjax("reproduce", "all", "--preset", "quick", "--seed", "7", "--out", "run")

    return run


def test_all_goes_on_after_a_failure_and_exits_1(mirrorjax, reproduce_few, tmp_path):
    done = reproduce_few("broken", "fine")
    assert done.returncode == 1
    assert "broken failed: RuntimeError: it broke [here]" in done.stdout
    assert "1 failed: broken" in done.stderr
    assert "Traceback" not in done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "it broke [here]" in page
    assert "float64 and seed 7" in page
    # The same page again, from the folder alone.
    assert mirrorjax("report", "run").returncode == 0
    assert (tmp_path / "run" / "report.html").read_text() == page


def test_status_of_a_folder_of_reproduce_says_what_it_is(mirrorjax, reproduce_few):
    reproduce_few("fine")
    done = mirrorjax("status", "run")
    assert done.returncode == 0, done.stderr
    assert "run is a folder of `mirrorjax reproduce`" in done.stdout
    assert "1 of 1" in done.stdout
    assert "its report comes from: mirrorjax report run" in done.stdout


def test_ctrl_c_stops_all_and_the_report_says_what_is_missing(reproduce_few, tmp_path):
    done = reproduce_few("fine", "stopped", "broken")
    assert done.returncode == 130
    assert "Interrupted. What was finished is in run" in done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "float64 and seed 7" in page
    assert "Interrupted: only what was finished is here" in page
    assert "Not started" in page


@pytest.mark.slow
def test_reproduce_quick_writes_whole_files_and_shows_the_claims(tmp_path):
    # In a process of its own: most of its time is computation, which the flags of the test session slow down.
    arguments = "reproduce", "matrix-sensing", "--preset", "quick", "--out", "run"
    done = in_a_process(tmp_path, *arguments, JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    assert done.returncode == 0, done.stderr
    assert "NOT shown" not in done.stdout
    assert "to be read in run/report.html" in done.stdout
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["state"] == "finished"
    assert config["bits"] == 64
    assert config["versions"]["mirrorjax"]
    table = pd.read_csv(run / "table2.csv")
    assert list(table.columns)[:9] == [
        "schedule",
        "method",
        "t_off",
        "nuclear_norm",
        "rel_error",
        "train_loss",
        "time_to_train_loss",
        "paper_nuclear_norm",
        "paper_time",
    ]
    flow = table[table.method == "flow"].set_index("schedule")
    switched = flow[flow.t_off.notna()]
    assert len(switched) == 6
    assert np.all(np.abs(switched.nuclear_norm - 1) < 2e-3)
    assert np.all(switched.rel_error < 1e-4)
    assert flow.loc["constant 0.01"].rel_error > 0.01
    descent = table[table.method == "descent"].set_index("schedule")
    assert descent.loc["constant 20"].status == "unstable"
    with xr.open_dataset(run / "flow.nc", engine="h5netcdf") as data:
        assert data.loss.dims == ("lane", "time")
    for name in (
        "fig3_reparameterization",
        "fig5_loss_and_error",
        "fig6_nuclear_norm",
        "fig7_late_recovery",
        "heat_map",
    ):
        assert (run / f"{name}.png").stat().st_size > 10_000


ENDLESS = """
import jax.numpy as jnp
import mirrorjax as mj
from mirrorjax.cli import main


def lane(alpha):
    f = mj.LeastSquares(jnp.ones((2, 3)), jnp.ones(2))
    return mj.Problem(mj.Linear(), mj.WeightDecay(), mj.Constant(alpha), f), jnp.ones(3)


def run(folder, setting):
    number = 0
    while True:
        folder.save_dataset(f"flow_{number}", mj.sweep(lane, {"alpha": jnp.array([0.1, 0.2])}, t1=1.0))
        number += 1


mj.experiments.register_experiment(mj.experiments.Experiment("endless", "It computes until it is stopped.", run))
main()
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_says_where(tmp_path):
    command = [sys.executable, "-c", ENDLESS, "reproduce", "endless", "--preset", "quick", "--out", "run"]
    first = tmp_path / "run" / "flow_0.nc"
    with started(tmp_path, *command) as process:
        stderr = stop(process, signal.SIGINT, first)
    assert process.returncode == 130
    assert "Interrupted. What was finished is in run" in stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["state"] == "interrupted"
    assert not [path for path in (tmp_path / "run").iterdir() if ".part" in path.name]
    with xr.open_dataset(first, engine="h5netcdf") as data:
        assert np.all(data.status == "successful")


# Of x = w, whose flow compiles in half of the time of others.
LANES = """
import jax.numpy as jnp
import mirrorjax as mj

f = mj.LeastSquares(jnp.ones((2, 3)), jnp.ones(2))


def lane(alpha, t_off):
    return mj.Problem(mj.Linear(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f), jnp.ones(3)
"""


@pytest.mark.slow
def test_sweep_status_resume(mirrorjax, tmp_path):
    (tmp_path / "lanes.py").write_text(LANES)
    text = 'lane = "lanes.py:lane"\nt1 = 8.0\n[grid]\nalpha = [0.1, 1.0, -1.0]\nt_off = [1.0, 2.0]\n'
    (tmp_path / "sweep.toml").write_text(text)
    done = mirrorjax("sweep", "sweep.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "6 lanes in run" in done.stdout
    status = mirrorjax("status", "run")
    for line in (done.stdout, status.stdout):
        assert "invalid_schedule" in line
        assert "successful" in line
    again = mirrorjax("sweep", "sweep.toml", "--out", "run")
    assert again.returncode == 2
    assert "`mirrorjax resume run`" in " ".join(again.stderr.split())
    assert mirrorjax("resume", "run").returncode == 0
    (tmp_path / "sweep.toml").write_text(text.replace("8.0", "9.0"))
    changed = mirrorjax("resume", "run")
    assert changed.returncode == 2
    assert "t1: 8.0 -> 9.0" in changed.stderr
    assert mirrorjax("status", "sweep.toml").returncode == 2


def test_the_example_of_a_sweep_runs_as_it_is(mirrorjax, tmp_path):
    (tmp_path / "example.toml").write_text(mirrorjax("sweep", "--example").stdout, encoding="utf-8")
    done = mirrorjax("sweep", "example.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    dataset = mj.open_sweep(tmp_path / "run")
    assert np.all(dataset.status == "successful")
    # Enough decay finds the five ones; too little does not, and too much finds them later than t1.
    error = dataset.error.isel(time=-1)
    assert (
        error.sel(alpha=1.0, t_off=5.0) < 0.05 < 1 < min(error.isel(alpha=0, t_off=0), error.isel(alpha=-1, t_off=-1))
    )


# Lanes that take minutes, so that a signal finds them at work.
LONG = (
    LANES.replace("alpha, t_off), f)", "1e-3 * alpha, t_off), f)")
    .replace("Linear", "Hadamard")
    .replace("jnp.ones(3)\n", "(jnp.ones(3), jnp.zeros(3))\n")
)
WAIT = "import time\ntime.sleep(60)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "lanes", "line"),
    [
        (signal.SIGTERM, LONG, "Interrupted. Go on with: mirrorjax resume run"),
        # Still importing: the exception of a signal may be lost there, or crash the library that is imported.
        (signal.SIGINT, WAIT + LANES, "Interrupted."),
    ],
)
def test_a_signal_ends_a_sweep_with_a_line_and_its_status(tmp_path, number, lanes, line):
    (tmp_path / "lanes.py").write_text(f"open('begun', 'w').close()\n{lanes}")
    (tmp_path / "sweep.toml").write_text(
        'lane = "lanes.py:lane"\nt1 = 1e9\nrtol = 1e-12\nmax_steps = 1000000000\n'
        "[grid]\nalpha = { geomspace = [0.1, 10, 64] }\nt_off = { linspace = [1, 1e8, 64] }\n"
    )
    first = tmp_path / ("run/process-000/manifest.json" if lanes is LONG else "begun")
    with started(tmp_path, *COMMAND, "sweep", "sweep.toml", "--out", "run") as process:
        stderr = stop(process, number, first)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1] == line
    assert (tmp_path / "run").exists() == (lanes is LONG)


def test_a_recipe_with_a_mark_of_the_order_of_bytes_is_read_in_any_locale(tmp_path):
    (tmp_path / "lanes.py").write_text(LANES, encoding="utf-8")
    text = 'lane = "lanes.py:lane" # λ\nt1 = 8.0\n[zip]\nalpha = [-0.1]\nt_off = [1.0]\n'
    (tmp_path / "sweep.toml").write_text(text, encoding="utf-8-sig")
    foreign = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = in_a_process(tmp_path, "sweep", "sweep.toml", "--out", "λ", **foreign)
    assert done.returncode == 0, done.stderr
    assert 'mirrorjax.open_sweep("' in done.stdout


def test_markup_in_paths_is_printed_as_it_is(mirrorjax, tmp_path):
    (tmp_path / "lanes.py").write_text(LANES)
    (tmp_path / "sweep.toml").write_text('lane = "lanes.py:lane"\nt1 = 1.0\n[zip]\nalpha = [0.1]\nt_off = [1.0]\n')
    done = mirrorjax("sweep", "sweep.toml", "--out", "[red]a[/b]")
    assert done.returncode == 0, done.stderr
    assert "1 lanes in [red]a[/b]" in done.stdout
    assert 'mirrorjax.open_sweep("[red]a[/b]")' in done.stdout
    assert "1 lanes in [red]a[/b]" in mirrorjax("status", "[red]a[/b]").stdout


def test_status_of_a_map_over_a_grid(mirrorjax, tmp_path):
    mj.map_grid(lambda a: {"twice": 2 * a}, {"a": [1.0, 2.0]}, store=tmp_path / "run")
    done = mirrorjax("status", "run")
    assert done.returncode == 0, done.stderr
    assert "run holds twice over a" in done.stdout


def test_a_failed_start_leaves_no_folder_and_none_of_its_parents(mirrorjax, tmp_path):
    (tmp_path / "lanes.py").write_text(LANES)
    (tmp_path / "sweep.toml").write_text('lane = "lanes.py:lane"\nt1 = 0.0\n[zip]\nalpha = [0.1]\nt_off = [1.0]\n')
    assert mirrorjax("sweep", "sweep.toml", "--out", "a/b/c").returncode == 2
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"lanes.py", "sweep.toml"}


def test_an_error_that_nobody_foresaw_is_shown_whole_with_a_request_to_report_it(mirrorjax, monkeypatch):
    def broken(folder):
        return {}["a key of ours"]

    monkeypatch.setattr("mirrorjax.experiments.core.report.read_runs", broken)
    monkeypatch.setattr("mirrorjax.cli.ending.is_users", lambda error: False)  # this file is a user's, else
    done = mirrorjax("report", "run")
    assert done.returncode == 1
    assert "KeyError: 'a key of ours'" in done.stderr
    assert "Please report it" in done.stderr
