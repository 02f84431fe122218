"""The ledger: its rows name claims that exist, and its verdicts come from runs."""

import ast
import io
import json
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from rich.console import Console

import mirrorjax
from mirrorjax.experiments import EXPERIMENTS, RunFolder, Setting, ledger
from mirrorjax.experiments.core import machine
from mirrorjax.experiments.theory.geometry import CASES

HOUSE = Path(mirrorjax.__file__).parent / "experiments"
ROOMS = {name: each.run.split(":")[0].split(".")[-2] for name, each in EXPERIMENTS.items() if isinstance(each.run, str)}


def texts(room: str) -> tuple[set[str], set[str]]:
    """Every text in the files of a room, and every formatted text, with * for what it fills in."""
    plain, formatted = set(), set()
    for path in (HOUSE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                plain.add(node.value)
            if isinstance(node, ast.JoinedStr):
                formatted.add(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                )
    return plain, formatted


@pytest.fixture(scope="module")
def sources() -> dict[str, tuple[set[str], set[str]]]:
    return {room: texts(room) for room in ("theory", "networks")}


def is_written(name: str, source: tuple[set[str], set[str]]) -> bool:
    """True for a name that the source has: whole, as the filled-in form of a text, or as a pattern of one."""
    plain, formatted = source
    head, _, tail = name.partition(" ")  # keys may be put together of two texts: "stuck" + " early"
    return (
        name in plain
        or (head in plain and f" {tail}" in plain)
        or any(fnmatchcase(name, each) for each in formatted if each.strip("* "))
        or any(fnmatchcase(each, name) for each in (*plain, *formatted) if "*" in name)
    )


def test_every_row_names_an_experiment_and_a_claim_that_exist(sources):
    for said in ledger.statements():
        assert said.statement.endswith("."), said
        assert said.where, said
        assert bool(said.experiment) == bool(said.key), said
        if said.experiment and not said.needs:
            assert is_written(said.key, sources[ROOMS[said.experiment]]), said
            assert not is_written(f"un{said.key}", sources[ROOMS[said.experiment]]), said  # the test would see it
        if not said.experiment:
            assert said.needs, said


def test_the_ledger_is_whole():
    rows = ledger.read_ledger()
    assert len(rows) >= 60
    assert len({(row.said.experiment, row.said.key, row.said.statement) for row in rows}) == len(rows)
    # Whatever two cores can measure is measured: all that is theory.
    missing = [row.said for row in rows if row.holds is None and ROOMS.get(row.said.experiment) == "theory"]
    assert missing == []
    # A claim that fails is a row that says so.
    assert {row.verdict for row in rows if row.holds is False} == {"NOT shown"}


def test_no_paper_preset_is_passed_over_in_silence():
    recorded = {(run["experiment"], run["preset"]) for run in ledger._recorded()}
    listed = {(each.experiment, each.preset) for each in ledger.not_run()}
    assert not recorded & listed
    assert {(name, "paper") for name in EXPERIMENTS} <= recorded | listed


def test_every_picture_is_drawn_under_its_number(sources):
    numbers = [each.number for each in ledger.pictures()]
    wanted = [f"Fig. {number}" for number in range(1, 17)] + [f"Table {number}" for number in range(1, 7)]
    assert sorted(numbers) == sorted(wanted)
    drawn = {case.file for case in CASES}
    for each in ledger.pictures():
        assert each.same or each.setting, each
        if each.file:
            assert each.file in drawn or is_written(each.file.removesuffix(".csv"), sources[ROOMS[each.experiment]]), (
                each
            )
        if each.file.startswith("fig"):
            assert each.file.startswith(f"fig{each.number.removeprefix('Fig. ')}_"), each


def test_the_tables_hold_every_row():
    assert ledger.claims_table().count("\n") == len(ledger.statements()) + 1
    assert ledger.pictures_table().count("\n") == 23
    assert ledger.choices_table().count("recovered") == sum(not each.printed for each in ledger.choices())
    assert all(line.count(" | ") == 5 for line in ledger.claims_table().splitlines())


STATEMENTS = """
[[claim]]
statement = "It falls."
where = "Fig. 1"
experiment = "depth"
key = "falls"

[[claim]]
statement = "It rises, with an A."
where = "Fig. 2"
experiment = "depth"
key = "it rises with *"

[[claim]]
statement = "It needs a machine."
where = "Table 1"
needs = "a machine"

[[not_run]]
experiment = "depth"
preset = "paper"
why = "ten hours"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A ledger of three claims, and a function that makes a run of `depth`, with claims as (key, statement, holds)."""
    (tmp_path / "ledger.toml").write_text(STATEMENTS)
    monkeypatch.setattr(ledger, "STATEMENTS", tmp_path / "ledger.toml")
    monkeypatch.setattr(ledger, "MEASURED", tmp_path / "measured.json")

    def make(name, preset, *claims, state="finished"):
        folder = RunFolder(tmp_path / "runs" / name, "depth", Setting(preset, 0, 64), Console(file=io.StringIO()))
        for number, (key, statement, holds) in enumerate(claims):
            folder.claim(statement, key=key, paper="-", ours=f"{name} {number}", holds=holds)
        folder.finish(state)
        return tmp_path / "runs"

    return make


def test_verdicts_and_numbers_come_from_runs(run, capsys):
    runs = run("a", "quick", ("falls", "whatever its words", True), ("", "it rises with A", True), ("", "else", True))
    assert [row.verdict for row in ledger.read_ledger(runs)] == ["shown", "shown", "not measured: a machine"]
    assert [row.verdict for row in ledger.read_ledger()][:2] == [
        "not measured: no run of the experiment is recorded"
    ] * 2
    assert ledger.record(runs) == ["depth (quick): 2 claims of the ledger"]
    assert [row.ours for row in ledger.read_ledger()] == ["a 0", "a 1", ""]
    assert ledger.counts() == "3 claims: 2 shown, 0 not shown, 1 not measured."
    table = ledger.runs_table().splitlines()
    assert table[-2].startswith("| depth | quick | 0 |")
    assert table[-1] == "| depth | paper | - | not run: ten hours | - | - | - |"
    # The larger preset counts, and a statement with several claims holds if all of them do.
    ledger.record(run("b", "paper", ("falls", "by flow", True), ("falls", "by descent", False)))
    first, second, _ = ledger.read_ledger()
    assert (first.preset, first.ours, first.verdict) == ("paper", "b 0; b 1", "NOT shown")
    assert (second.preset, second.ours) == ("quick", "a 1")
    # Recording the runs again changes nothing.
    before = ledger.MEASURED.read_text()
    ledger.record(run("c", "paper", ("falls", "an unfinished run", True), state="interrupted"))
    assert ledger.MEASURED.read_text() == before


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_is_that_of_the_source_tree_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "HERE", tmp_path / "machine.py")
    machine.HERE.touch()

    def git(*arguments):
        name = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True)

    assert machine.commit() == "-"
    git("init")
    assert machine.commit() == "-"  # installed inside of another repository, which does not track it
    git("add", "machine.py")
    git("commit", "-m", "one")
    known = machine.commit()
    assert len(known) >= 7
    machine.HERE.write_text("changed")
    assert machine.commit() == f"{known}-dirty"


def test_a_folder_that_is_none_of_runs_is_one_line(run, tmp_path):
    with pytest.raises(ValueError, match="holds no finished run of `mirrorjax reproduce`"):
        ledger.record(tmp_path)
    runs = run("a", "quick", ("falls", "x", True))
    config = runs / "a" / "config.json"
    kept = json.loads(config.read_text())
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        ledger.record(runs)
    config.write_text(json.dumps({name: value for name, value in kept.items() if name != "seed"}))
    with pytest.raises(ValueError, match="it has no 'seed'"):
        ledger.record(runs)
