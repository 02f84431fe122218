"""Bad input of the command line: exit status 2, one line that says what is wrong, and nothing left behind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import run_main
from faults_table import table

LANES = """
import dataclasses
import jax.numpy as jnp
import mirrorjax as mj

number = 3
f = mj.LeastSquares(jnp.ones((2, 3)), jnp.ones(2))


def lane(alpha):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, f), (jnp.ones(3), jnp.zeros(3))


def misspelt(alpha):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpah, f), (jnp.ones(3), jnp.zeros(3))


def branching(alpha):
    return lane(alpha if alpha > 0 else 0.0)


def deep(alpha):
    return lane(sum(0.1 for _ in range(alpha)))
"""
RECIPE = {"lane": '"lanes.py:lane"', "t1": "1.0", "grid.alpha": "[0.1, 0.2]"}


def recipe(**changes: str | None) -> dict[str, str | bytes]:
    entries = {key.replace("__", "."): value for key, value in changes.items()}
    entries = {key: value for key, value in (RECIPE | entries).items() if value is not None}
    return {"lanes.py": LANES, "sweep.toml": "\n".join(f"{key} = {value}" for key, value in entries.items())}


def run_config(**changes: Any) -> str:
    whole = {"experiment": "x", "summary": "", "state": "finished", "preset": "quick", "seed": 0, "bits": 64}
    whole |= {"started": "2025-04-28T09:03:00+00:00", "seconds": 1.0, "versions": {}, "machine": {}}
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None})


class Bad(NamedTuple):
    """A command with files beside it; the words that its one line must have."""

    what: str
    arguments: tuple[str, ...]
    says: str
    files: Mapping[str, str | bytes] = {}  # a mapping that no row changes

    def check(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        before = sorted(folder.rglob("*"))
        done = run_main(monkeypatch, *self.arguments)
        assert done.returncode == 2, done
        assert self.says in " ".join(done.stderr.replace("│", " ").split()), done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") <= 8, done.stderr
        left = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
        assert left == before


def sweep(what: str, says: str, **changes: str | None) -> Bad:
    return Bad(f"sweep: {what}", ("sweep", "sweep.toml", "--out", "run"), says, recipe(**changes))


def report(what: str, says: str, **files: str | bytes) -> Bad:
    named = {f"run/{name.replace('__', '.')}": content for name, content in files.items()}
    return Bad(f"report: {what}", ("report", "run"), says, named)


def explain(what: str, says: str, *arguments: str) -> Bad:
    return Bad(f"explain: {what}", ("explain", *arguments), says)


HADAMARD = ("hadamard", "-i", "1", "-i", "0")
BROKEN = {
    "syntax": "def lane(:\n",
    "zero": "x = 1\ny = x / 0\n",
    "leaves": "import sys\nsys.exit(3)\n",
    "needs": "import no_such_module\n",
}

ROWS = [
    # What a recipe says.
    sweep(
        "float32 in quotes", "sweep.toml: float32 must be true or false, without quotes, got 'false'", float32='"false"'
    ),
    sweep("float32 = 1", "float32 must be true or false, without quotes, got 1", float32="1"),
    sweep("float32 = []", "float32 must be true or false, without quotes, got []", float32="[]"),
    sweep("t1 a text", "sweep.toml: t1 must be a number, got '1'", t1='"1"'),
    sweep("t1 a truth", "t1 must be a number, got True", t1="true"),
    sweep("t1 infinite", "t1 must be positive and finite, got inf", t1="inf"),
    sweep("t1 zero", "t1 must be positive and finite, got 0.0", t1="0"),
    sweep("t1 of 400 digits", "t1 is too large, it has 400 digits", t1="9" * 400),
    sweep("rtol a text", "rtol must be a number, got '1e-3'", rtol='"1e-3"'),
    sweep("max_steps a fraction", "max_steps must be a whole number, got 1.5", max_steps="1.5"),
    sweep("chunk zero", "chunk must be a whole number of at least 1, got 0", chunk="0"),
    sweep("checkpoint_every negative", "checkpoint_every must be", checkpoint_every="-1"),
    sweep("checkpoint_every NaN", "checkpoint_every must be", checkpoint_every="nan"),
    sweep("saveat texts", "saveat must be a list of numbers, got ['a']", saveat='["a"]'),
    sweep("saveat a number", "saveat must be a list of numbers or one of linspace", saveat="1.0"),
    sweep("saveat past t1", "saveat must lie in [0, t1]", saveat="[0.0, 2.0]"),
    sweep(
        "a ragged grid",
        "grid.alpha must be a list of numbers, or of lists of one length",
        grid__alpha="[[1.0], [1.0, 2.0]]",
    ),
    sweep("a grid of texts", "grid.alpha must be a list of numbers, got ['a']", grid__alpha='["a"]'),
    sweep("an empty grid", "the values of alpha must be", grid__alpha="[]"),
    sweep(
        "a grid of 1e12 values",
        "it has 1e+12 values, more than 1e+08",
        grid__alpha="{ linspace = [0, 1, 1000000000000] }",
    ),
    sweep("a range of 1e12 values", "it has 1e+12 values", grid__alpha="{ arange = [0.0, 1e12, 1.0] }"),
    sweep("a range without step", "arange must be [first, end, step], got [0]", grid__alpha="{ arange = [0] }"),
    sweep("a step of zero", "division by zero", grid__alpha="{ arange = [0, 1, 0] }"),
    sweep(
        "a spacing of texts",
        "linspace must be a list of numbers, got ['a', 1, 2]",
        grid__alpha="{ linspace = ['a', 1, 2] }",
    ),
    sweep(
        "a count that is no whole number",
        "grid.alpha = { linspace = [0, 1, 2.5] }:",
        grid__alpha="{ linspace = [0, 1, 2.5] }",
    ),
    sweep(
        "a misspelt parameter",
        "takes (alpha), but the parameters of the grid are alhpa",
        grid__alpha=None,
        grid__alhpa="[0.1]",
    ),
    sweep(
        "one parameter too many", "takes (alpha), but the parameters of the grid are alpha, beta", grid__beta="[1.0]"
    ),
    sweep("a parameter with a space", "grid.'a b' cannot be a parameter", **{'grid__"a b"': "[1.0]"}),
    sweep("grid a number", "grid must be a table of parameters, got 3", grid__alpha=None, grid="3"),
    sweep("a misspelt entry", "unknown entries ['max_step']; there are: lane,", max_step="3"),
    sweep("the nearest entry", "'max_step' may be 'max_steps'", max_step="3"),
    sweep("flow a list", "flow must be one of primal, mirror, riemannian, got ['mirror']", flow='["mirror"]'),
    sweep("solver a table", "solver must be one of rkc, got {}", solver="{}"),
    sweep("no lane", "the entry 'lane' is missing", lane=None),
    sweep("lane without a module", 'lane must be "file.py:function"', lane='":lane"'),
    sweep("lane two dots", 'lane must be "file.py:function"', lane='"..:lane"'),
    sweep("lane a path", 'lane must be "file.py:function"', lane='"../../../etc/passwd:x"'),
    sweep("lane a number", 'lane must be "file.py:function" or "package.module:function", got 3', lane="3"),
    sweep("lane no function", "lane = 'lanes.py:number' must be a function, got 3", lane='"lanes.py:number"'),
    sweep(
        "lane of the system",
        "'os:system' takes (command), but the parameters of the grid are alpha",
        lane='"os:system"',
    ),
    sweep("lane a built-in function", "'builtins:eval' takes (source,", lane='"builtins:eval"'),
    sweep("lane a class without signature", "the lane must return (Problem, w0), got {'alpha'", lane='"builtins:dict"'),
    sweep(
        "a module that is not there",
        "'no_such:lane' cannot be loaded: No module named 'no_such'",
        lane='"no_such:lane"',
    ),
    sweep("a name error in the lane", "NameError: name 'alpah' is not defined (", lane='"lanes.py:misspelt"'),
    sweep("the line of a name error", "lanes.py, line 15)", lane='"lanes.py:misspelt"'),
    sweep("if on a parameter", "lanes.py, line 19); under jit and vmap write jnp.where", lane='"lanes.py:branching"'),
    sweep(
        "a loop over a parameter",
        "lanes.py, line 23): a shape, a depth or the number of rounds",
        lane='"lanes.py:deep"',
        grid__alpha="[1, 2]",
    ),
    *(
        Bad(
            f"sweep: a lane file that {name}",
            ("sweep", "sweep.toml"),
            says,
            recipe(lane='"broken.py:lane"') | {"broken.py": text},
        )
        for (name, text), says in zip(
            BROKEN.items(),
            (
                "broken.py:lane' cannot be loaded: invalid syntax (",
                "ZeroDivisionError: division by zero (",
                "cannot be loaded: SystemExit: 3 (",
                "cannot be loaded: No module named 'no_such_module' (",
            ),
            strict=True,
        )
    ),
    Bad(
        "sweep: Latin-1",
        ("sweep", "sweep.toml"),
        "sweep.toml is not TOML: it is not in UTF-8",
        {"sweep.toml": "# é".encode("latin-1")},
    ),
    Bad("sweep: UTF-16", ("sweep", "sweep.toml"), "is not in UTF-8", {"sweep.toml": "t1 = 1".encode("utf-16")}),
    Bad("sweep: no TOML", ("sweep", "sweep.toml"), "sweep.toml is not TOML: ", {"sweep.toml": "t1 = = 1"}),
    Bad("sweep: a folder", ("sweep", "."), "cannot be read: Is a directory"),
    Bad("sweep: no file", ("sweep", "none.toml"), "none.toml cannot be read: No such file"),
    # Where a run goes.
    Bad(
        "out below a file",
        ("sweep", "sweep.toml", "--out", "lanes.py/x"),
        "the folder lanes.py/x cannot be made: Not a directory; choose another",
        recipe(),
    ),
    Bad(
        "out below /proc", ("sweep", "sweep.toml", "--out", "/proc/x"), "the folder /proc/x cannot be made: ", recipe()
    ),
    Bad("out too long", ("sweep", "sweep.toml", "--out", "x" * 300), "cannot be made: File name too long", recipe()),
    Bad(
        "out with markup",
        ("sweep", "sweep.toml", "--out", "[red]x[/b]"),
        "the folder [red]x[/b] exists",
        recipe() | {"[red]x[/b]/note": ""},
    ),
    Bad(
        "reproduce below a file",
        ("reproduce", "matrix-sensing", "--out", "a/b"),
        "the folder a/b cannot be made: Not a directory",
        {"a": ""},
    ),
    # Runs that are there.
    Bad(
        "resume: no folder",
        ("resume", "runs[/old]"),
        "runs[/old] is not the folder of `mirrorjax sweep`: it has no recipe.json",
    ),
    *(
        Bad(f"resume: recipe.json {content}", ("resume", "run"), says, {"run/recipe.json": content})
        for content, says in {
            "[]": "run/recipe.json is not as mirrorjax writes it: it must be a JSON mapping, got []",
            "{": "run/recipe.json is not JSON, as mirrorjax writes it",
            "{}": "run/recipe.json does not name the TOML file of a sweep",
            '{"file": 3}': "run/recipe.json does not name the TOML file of a sweep",
            '{"file": "gone.toml"}': "the file gone.toml cannot be read: No such file",
        }.items()
    ),
    Bad("resume: not UTF-8", ("resume", "run"), "run/recipe.json is not JSON", {"run/recipe.json": b"\xff\xfe"}),
    Bad("status: no folder", ("status", "[/x]"), "[/x] is not the folder of a run"),
    Bad("status: a file", ("status", "x"), "x is not the folder of a run", {"x": ""}),
    Bad("sweep: nothing", ("sweep",), "give the TOML file of a sweep, or --example"),
    Bad(
        "status: config a list",
        ("status", "run"),
        "run/config.json is not as mirrorjax writes it",
        {"run/config.json": "[]"},
    ),
    Bad("status: config no JSON", ("status", "run"), "run/config.json is not JSON", {"run/config.json": "{"}),
    report("config no JSON", "run/config.json is not JSON, as `mirrorjax reproduce` writes it", config__json="{"),
    report("config a list", "it must be a mapping, got []", config__json="[]"),
    report(
        "config of another program",
        "run/config.json is not as `mirrorjax reproduce` writes it: there is no 'state'",
        config__json='{"experiment": "x"}',
    ),
    report("an unknown state", "there is no 'odd'", config__json=run_config(state="odd")),
    report("a seed of text", "seed = 'x'", config__json=run_config(seed="x")),
    report("a time of another format", "run/config.json", config__json=run_config(started="yesterday")),
    report(
        "a table without a file",
        "no.csv is missing, which config.json names",
        config__json=run_config(tables=[{"file": "no"}]),
    ),
    report(
        "tables a number",
        "run/config.json is not as `mirrorjax reproduce` writes it",
        config__json=run_config(tables=3),
    ),
    report("experiments a text", "`experiments` must be a list of names, got 'x'", config__json='{"experiments": "x"}'),
    report(
        "claims of another program",
        "run/claims.csv is not as `mirrorjax reproduce` writes it: there is no 'statement'",
        config__json=run_config(),
        claims__csv="a\n1\n",
    ),
    report(
        "claims not UTF-8",
        "run/claims.csv is not a CSV file in UTF-8",
        config__json=run_config(),
        claims__csv=b"\xff\xfe\n",
    ),
    report("a broken picture", "x.png is not a PNG file, or is damaged", config__json=run_config(), x__png=b"\x89PN"),
    Bad("report: nothing there", ("report", "[b]"), "[b] holds no run"),
    Bad("reproduce: no experiment", ("reproduce", "[/b]"), "there is no experiment '[/b]'"),
    Bad(
        "reproduce: seed 2**32",
        ("reproduce", "matrix-sensing", "--seed", str(2**32)),
        "Invalid value for '--seed'",
    ),
    Bad("reproduce: seed -1", ("reproduce", "matrix-sensing", "--seed", "-1"), "Invalid value for '--seed'"),
    explain("no such folder", "the folder no of --out does not exist", *HADAMARD, "--out", "no/R.png"),
    explain("a picture of another kind", "named .png, .pdf, .svg or .html, got R.gif", *HADAMARD, "--out", "R.gif"),
    explain("a family of nobody", "the family = 'no_such:g' cannot be loaded: No module", "no_such:g", "-i", "1"),
    explain(
        "a family that is none", "'math:pi' must be a reparameterization or make one, got 3.1", "math:pi", "-i", "1"
    ),
    Bad("spectra: no file", ("spectra", "a.safetensors"), "there is no weight file a.safetensors"),
    Bad("spectra: a pickle", ("spectra", "a.bin"), "unpickling can run any code", {"a.bin": b"\x80\x04."}),
    Bad("spectra: twice", ("spectra", "a.safetensors", "a.safetensors"), "a checkpoint is given twice"),
    Bad("spectra: a picture of another kind", ("spectra", "a.npz", "--out", "a.gif"), "--out must be a file named"),
    Bad("spectra: an empty folder", ("spectra", "run"), "the folder run holds no .safetensors file", {"run/a": ""}),
    Bad("bias: a family of nobody", ("bias", "a.npz", "b.npz", "--family", "cubic"), "there is no family 'cubic'"),
    Bad("bias: no file", ("bias", "a.npz", "b.npz"), "there is no weight file a.npz"),
    explain("weights not numbers", "Invalid value for '--init'", "hadamard", "-i", "a"),
    explain("weights NaN", "must be finite", "hadamard", "-i", "nan", "-i", "0"),
    explain("too many weights", "Square", "square", "-i", "1", "-i", "2"),
    explain("one factor of a product", "depth of Hadamard must be at least 2, got 1", "hadamard", "-i", "1"),
    explain("alpha infinite", "alpha must be finite", *HADAMARD, "--alpha", "inf"),
    explain("scale 0", "scale", *HADAMARD, "--scale", "0"),
    explain("scale NaN", "scale", *HADAMARD, "--scale", "nan"),
    explain("t1 infinite", "the last time must be positive and finite, got inf", *HADAMARD, "--t1", "inf"),
    explain("times 1", "Invalid value for '--times'", *HADAMARD, "--times", "1"),
    explain("no weights", "Missing option '--init'", "hadamard"),
]


@pytest.mark.usefixtures("unchecked_types")
@table(ROWS)
def test_refusals(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row.check(tmp_path, monkeypatch)
