"""Runs over grids: bad grids, names of results and arguments, refused before the work, and numbers that were wrong."""

import random
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults_table import Refusal, Right, table
from small_runs import A, in_folder, number, over, trained

import mirrorjax as mj

START = (jnp.ones(2), jnp.zeros(2))
OBJECTIVE = mj.LeastSquares(np.eye(2), np.ones(2))


def narrow(grid, **how):
    """`over` in the default precision of JAX."""
    with jax.enable_x64(False):
        return over(grid, **how)


def lane(alpha):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, OBJECTIVE), START


def swept(metrics=None, grid=None, function=lane, **how):
    return mj.sweep(function, grid or {"alpha": [0.1, 0.2]}, t1=1.0, metrics=metrics, progress=False, **how)


def with_files(call, **files):
    """Calls with the path of a folder that holds these files."""

    def filled(path):
        path.mkdir()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)
        return call(path)

    return in_folder(filled)


def link(path):
    path.symlink_to(path.parent / "nowhere")
    return over(A, store=path)


def layered(depth):
    x = START[0]
    for _ in range(depth):
        x = x * x
    return lane(jnp.sum(x))


# Grids: values, names, structure.
TRACED = "schedules its lanes on the host"
GRIDS = [
    Refusal("two seeds become one", lambda: narrow({"seed": [7, 7 + 2**32]}), "seed hold 4294967303, which needs 64"),
    Refusal("a seed beyond 2^32", lambda: narrow({"seed": [2**40 + 1]}), "seed hold 1099511627777"),
    Refusal("a negative seed beside a large one", lambda: narrow({"s": [-1, 2**31 + 1]}), "s hold 2147483649"),
    Refusal("two strengths become one", lambda: narrow({"a": [1.0, 1 + 1e-9]}), r"\{'a': 1.0\} and .* one lane after"),
    Refusal("rows that become one", lambda: narrow({"w": [[1.0, 2.0], [1.0, 2 + 1e-9]]}), "are one lane after"),
    Refusal("1e300 in float32", lambda: narrow({"a": [1.0, 1e300]}), r"a = 1e\+300 exceeds float32; enable"),
    Refusal("1e-300 in float32", lambda: narrow({"a": [1e-300]}), "a hold 1e-300, which needs a wider range"),
    Refusal("a subnormal of float32", lambda: narrow({"a": [1e-42]}), "needs a wider range than float32"),
    Refusal("an integer beside floats", lambda: over({"a": [2**53 + 1, 0.5]}), "hold 9007199254740993 beside floats"),
    Refusal("an integer beyond 64 bits", lambda: over({"a": [2**70]}), "a must be numbers"),
    Refusal("words", lambda: over({"g": ["hadamard", "square"]}), "structure .* loop over it in Python"),
    Refusal("objects", lambda: over({"g": [mj.Hadamard(), mj.Square()]}), "structure .* loop over it in Python"),
    Refusal("None", lambda: over({"a": None}), "a must be numbers"),
    Refusal("a ragged list", lambda: over({"a": [[1.0], [1.0, 2.0]]}), "a must be numbers"),
    Refusal("random keys", lambda: over({"key": jax.random.split(jax.random.key(0))}), "key must be numbers"),
    Refusal("a key that is no word", lambda: over({1: [1.0]}), "the parameter 1 of the grid must be named"),
    Refusal("a slash in a name", lambda: over({"decay/when": [1.0]}), "'decay/when' .* named like an argument"),
    Refusal("a name with a dot", lambda: over({".k": [1.0]}), "'.k' of the grid must be named like an argument"),
    Refusal("an empty name", lambda: over({"": [1.0]}), "the parameter '' of the grid"),
    Refusal("a bad name in a Zip", lambda: mj.Zip(**{"a b": [1.0]}), "the parameter 'a b' of the grid"),
    Refusal("a bad dimension", lambda: over({"a/b": mj.Zip(a=[1.0])}), "the dimension 'a/b' of the grid"),
    Refusal("time in a Zip", lambda: over({"z": mj.Zip(time=[1.0])}), "the name time is taken by the dataset"),
    Refusal(
        "a dimension like a parameter",
        lambda: over({"b": mj.Zip(a=[1.0]), "c": mj.Zip(b=[1.0])}),
        r"\['b'\] are dimensions",
    ),
    Refusal("under jit", lambda: jax.jit(lambda a: over({"a": a[None]}).value)(1.0), TRACED),
    Refusal("under grad", lambda: jax.grad(lambda a: over({"a": [a]}).value)(1.0), TRACED),
    Refusal("a closure under jit", lambda: jax.jit(lambda b: over(A, lambda a: a * b).value)(1.0), TRACED),
    Refusal(
        "a grid over depth",
        lambda: over({"depth": [2, 3]}, lambda depth: jnp.zeros(depth)),
        r"(?s)a number that is traced.*(loop|outside the traced)",
    ),
    Refusal(
        "a sweep over depth",
        lambda: swept(function=layered, grid={"depth": [2, 3]}),
        "the lane makes a structure of a number that is traced .*, line .*loop over its values in Python",
    ),
]
# Names of results, refused before the work.
NAMES = [
    Refusal("a metric named time", lambda: swept(lambda t, x, w: {"time": t}), r"\['time'\] are taken"),
    Refusal("a metric named .useful", lambda: swept(lambda t, x, w: {".useful": t}), r"cannot be named \['.useful'\]"),
    Refusal("a metric named .lanes", lambda: swept(lambda t, x, w: {".lanes": t}), r"cannot be named \['.lanes'\]"),
    Refusal("a metric named x_0", lambda: swept(lambda t, x, w: {"x_0": t}), r"\['x_0'\] are dimensions of results"),
    Refusal(
        "colliding paths", lambda: swept(lambda t, x, w: {"a.b": t, "a": {"b": t}}), "two results have the name 'a.b'"
    ),
    Refusal("a metric like a parameter", lambda: swept(lambda t, x, w: {"alpha": t}), r"\['alpha'\] are both param"),
    Refusal("a metric named loss", lambda: swept(lambda t, x, w: {"loss": t}), r"\['loss'\] have the names"),
    Refusal("a parameter named loss", lambda: swept(function=lambda loss: lane(loss), grid={"loss": [0.1]}), "both"),
    Refusal("a parameter named x_0", lambda: swept(function=lambda x_0: lane(x_0), grid={"x_0": [0.1]}), r"\['x_0'\]"),
    Refusal("a result named .lanes", lambda: over(A, lambda a: {".lanes": a}), r"cannot be named \['.lanes'\]"),
    Refusal("a result named lanes", lambda: over(A, lambda a: {"lanes": a}), r"\['lanes'\] are taken"),
    Refusal("numbers named status", lambda: over(A, lambda a: {"status": a}), "status must be a mirrorjax.RESULTS"),
    Refusal("a result with a line break", lambda: over(A, lambda a: {"a\nb": a}), "cannot be named"),
    Refusal("a result that ends in a space", lambda: over(A, lambda a: {"y ": a}), "cannot be named"),
    Refusal("a result that is a key", lambda: over(A, lambda a: jax.random.key(0)), "must return arrays"),
    Refusal(
        "a result like the dimension of another",
        lambda: over(A, lambda a: {"y": a * jnp.ones(2), "y_0": a}),
        r"\['y_0'\] are dimensions of results",
    ),
    Refusal("a result like a parameter", lambda: over(A, lambda a: {"a": a}), r"\['a'\] are both parameters"),
    Refusal("a result like a dimension", lambda: over(mj.Zip(a=[1.0]), lambda a: {"lane": a}), r"\['lane'\] are both"),
    Refusal("a training metric like a parameter", lambda: trained(lambda w: {"rate": w["w"][0]}), r"\['rate'\]"),
    Refusal("a training metric named time", lambda: trained(lambda w: {"time": w["w"][0]}), r"\['time'\] are taken"),
    Refusal("a training metric named status", lambda: trained(lambda w: {"status": w["w"][0]}), r"\['status'\] have"),
    Refusal(
        "a training metric like weights that are kept",
        lambda: trained(lambda w: {"weights.w": w["w"][0]}, keep=True),
        r"the weights \['weights.w'\] have the names",
    ),
]
COUNT = []


def counter(a):
    COUNT.append(0)
    return a * len(COUNT)


def structure(alpha):
    COUNT.append(0)
    times = jnp.arange(1.0, 1 + len(COUNT))
    schedule = mj.Piecewise(times, alpha * jnp.ones(len(COUNT) + 1))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), schedule, OBJECTIVE), START


CPU = jax.devices()[0]
ARGUMENTS = [
    Refusal("lane=None", lambda: swept(function=None), "must be a function of the grid's parameters, got None"),
    Refusal("a lane that is a word", lambda: swept(function="lane"), "must be a function .* got 'lane'"),
    Refusal("fn=None", lambda: mj.map_grid(cast(Any, None), A), "the function must be a function .* got None"),
    Refusal("other parameters", lambda: mj.map_grid(number, {"b": [1.0]}), r"takes \(a\), .* grid are b"),
    Refusal("numpy on a parameter", lambda: over(A, lambda a: np.sin(a)), "the function needs the value"),
    Refusal("a random constant", lambda: over(A, lambda a: a * random.random()), "is not pure: two traces"),
    Refusal("the time of day", lambda: over(A, lambda a: a * time.time()), "is not pure: two traces"),
    Refusal("a random array", lambda: over(A, lambda a: a * np.random.rand(3)), "is not pure"),  # noqa: NPY002
    Refusal("a counter", lambda: over(A, counter), "is not pure: two traces"),
    Refusal("another structure at each trace", lambda: swept(function=structure), "is not pure: two traces"),
    Refusal("devices=3", lambda: over(A, devices=3), "devices must be a non-empty sequence .* got 3"),
    Refusal("a lone device", lambda: over(A, devices=CPU), r"got one device; write \["),
    Refusal("a device twice", lambda: over(A, devices=[CPU, CPU]), "devices must be distinct"),
    Refusal("devices of words", lambda: over(A, devices="cpu"), "devices must be a non-empty sequence"),
    Refusal("executor=3", lambda: over(A, executor=3), r"executor must be a concurrent\.futures\.Executor.*got 3"),
    Refusal("no devices", lambda: over(A, devices=[]), "devices must be a non-empty sequence"),
    Refusal("chunk=0", lambda: over(A, chunk=0), "chunk must be a whole number of at least 1, got 0"),
    Refusal("chunk=1.5", lambda: over(A, chunk=1.5), "chunk must be a whole number"),
    Refusal("chunk=True", lambda: over(A, chunk=True), "chunk must be a whole number"),
    Refusal("checkpoint_every='a'", lambda: trained(checkpoint_every="a"), "number of seconds >= 0, got 'a'"),
    Refusal("checkpoint_every=-1", lambda: trained(checkpoint_every=-1), "checkpoint_every must be a number"),
    Refusal("checkpoint_every=nan", lambda: trained(checkpoint_every=np.nan), "seconds >= 0, got nan"),
    Refusal("resume='yes'", lambda: over(A, resume="yes"), "resume must be True or False, got 'yes'"),
    Refusal("progress='yes'", lambda: over(A, progress="yes"), "progress must be True, False or None, got 'yes'"),
    Refusal("callback=3", lambda: over(A, callback=3), "callback must be a function of a SweepReport"),
    Refusal("resume without a store", lambda: over(A, resume=True), "resume=True needs the store"),
    Refusal("store=3", lambda: over(A, store=3), "store must be the path of a folder, .* got 3"),
    Refusal("store of bytes", lambda: over(A, store=b"run"), "store must be the path of a folder, .* got b'run'"),
    Refusal("store of a list", lambda: over(A, store=["run"]), r"store must be the path of a folder, .* got \['run'\]"),
    Refusal("an empty store", lambda: over(A, store=""), "store must be the path of a folder, got ''"),
    Refusal("store with a NUL", lambda: over(A, store="a\0b"), "store must be the path of a folder"),
    Refusal("store of 300 characters", lambda: over(A, store=300 * "a"), "File name too long"),
    Refusal("store is a link to nothing", lambda: in_folder(link), "the folder of a run: it is a link to nothing"),
    Refusal("store is a file", lambda: over(A, store=__file__), "is not the folder of a run: it is a file"),
    Refusal("store below a file", lambda: over(A, store=f"{__file__}/run"), "Not a directory|cannot be made"),
    Refusal(
        "foreign files in the store",
        lambda: with_files(lambda path: over(A, store=path), notes__txt="mine"),
        r"holds other files, such as notes\.txt; choose a new folder",
    ),
    Refusal(
        "foreign files, resumed",
        lambda: with_files(lambda path: over(A, store=path, resume=True), notes__txt="mine"),
        r"holds other files, such as notes\.txt",
    ),
    Refusal(
        "the configuration of something else",
        lambda: with_files(lambda path: over(A, store=path), config__json='{"name": "toy"}'),
        r"holds a config\.json that is not that of a run",
    ),
    Refusal(
        "open_sweep(None)", lambda: mj.open_sweep(cast(Any, None)), "path must be the path of a folder, .* got None"
    ),
    Refusal("open_sweep of a file", lambda: mj.open_sweep(__file__), "is not the folder of a run: it is a file"),
    Refusal("open_sweep of nothing", lambda: mj.open_sweep("/nowhere"), "is not the folder of a run: no readable"),
]


@table([*GRIDS, *NAMES, *ARGUMENTS])
def test_refusals(row):
    COUNT.clear()
    row.check()


def test_names_are_refused_before_the_work():
    calls = []

    def counted(a):
        jax.debug.callback(lambda: calls.append(1))
        return {"a": a}

    with pytest.raises(ValueError, match="both parameters"):
        mj.map_grid(counted, A)
    jax.effects_barrier()
    assert not calls


def draws(seed):
    return jax.random.uniform(jax.random.key(seed))


RIGHTS = [
    Right(
        "a seed of 32 bits keeps its number without x64",
        lambda: (narrow({"seed": [3735928559]}, fn=lambda seed: seed).value, [3735928559]),
        rtol=0,
    ),
    Right(
        "its label is the number given", lambda: (narrow({"seed": [3735928559]}, fn=draws).seed, [3735928559]), rtol=0
    ),
    Right(
        "labels keep float64 without x64",
        lambda: (narrow({"a": [0.1, 0.2]}).a.values.astype("f8"), np.array([0.1, 0.2])),
        rtol=0,
    ),
    Right("2^40 is no 0 without x64", lambda: (narrow({"t": [2**40]}).value, [2.0**40]), rtol=0),
    Right(
        "a number as small as float32 has",
        lambda: (narrow({"a": [1e-37]}).value, [np.float32(1e-37)]),
        rtol=1e-7,
    ),
    Right("equal lanes on purpose", lambda: (narrow({"seed": [7, 7]}).value, [7, 7]), rtol=0),
    Right(
        "lanes of a Zip that differ in another parameter",
        lambda: (narrow(mj.Zip(a=[1.0, 1 + 1e-9], b=[1.0, 2.0])).value, [2.0, 3.0]),
        rtol=1e-6,
    ),
    Right("infinities of a grid", lambda: (narrow({"a": [np.inf, 1.0]}).value, [np.inf, 1.0]), rtol=0),
    Right("unsigned results", lambda: (over(A, lambda a: jnp.uint32(3)).value, [3] * 5), rtol=0),
    Right("bfloat16 results", lambda: (over(A, lambda a: jnp.bfloat16(a)).value[4], 0.5), rtol=0),
    Right("numpy integers are chunks", lambda: (over(A, number, chunk=np.int64(2)).value, 2 * np.array(A["a"])), 1e-15),
]


@table(RIGHTS)
def test_right_values(row):
    row.check()
