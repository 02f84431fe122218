"""Bad lanes, metrics and settings of sweeps, and calls inside transformations."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults_table import Refusal, Right, table

import mirrorjax as mj
from mirrorjax import plot
from mirrorjax.experiments import Experiment, Setting
from mirrorjax.experiments.core.tables import read_rows

F = mj.LeastSquares(jnp.eye(2), jnp.ones(2))
START = (jnp.ones(2), jnp.zeros(2))
KEPT = []


def problem(alpha):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, F)


def lane(alpha):
    return problem(alpha), START


def keeping(alpha):
    KEPT.append(alpha)
    return lane(alpha + KEPT[0])


def swept(function: Any, grid: Any = None, **how: Any) -> Any:
    settings: dict[str, Any] = {"t1": 1.0, **how}
    return mj.sweep(function, {"alpha": [0.1, 0.2]} if grid is None else grid, **settings)


def by_depth(depth):
    return problem(sum(0.1 for _ in range(depth))), START


def by_size(size):
    return problem(0.1), (jnp.ones(size), jnp.zeros(size))


def by_slice(size):
    return problem(0.1), (jnp.ones(4)[:size], jnp.zeros(4)[:size])


def total_loss(scale):
    return jnp.sum(jnp.asarray(swept(lambda alpha: lane(scale * alpha)).loss.values))


def uneven():
    return plot.Panel([plot.Line(np.ones(2), np.ones(3), "a")], "t", "x", "y")


def twins():
    """Two lines of one look, "red" and "#ff0000", which the legend names differently."""
    return plot.Panel(
        [plot.Line(np.ones(2), np.ones(2), *look) for look in (("a", "--", "red"), ("b", "--", "#ff0000"))],
        "t",
        "x",
        "y",
    )


def heat_map(values, columns):
    words: Any = {"title": "", "row_label": "", "column_label": "", "value_label": ""}
    rows = np.array([1.0, 2.0])
    return plot.heat_map(values, rows, np.array(columns), **words)


PICTURES = [("a", np.ones((1, 2, 2))), ("b", np.ones((2, 2, 2)))]
SIZES = {"size": [1, 2]}
VALUES = r"the lane needs the value of a number that is traced \(.*test_faults_sweeps.py, line \d+\).*jnp.where"
STRUCTURE = (
    r"the lane makes a structure of a number that is traced \(.*test_faults_sweeps.py, line \d+\): a shape, a depth or "
    r"the number of rounds of a loop cannot be swept.*`for depth in depths: mirrorjax.sweep\(functools.partial"
)
INSIDE = "sweep got a number that is traced: it schedules its lanes on the host and cannot run inside jax.grad"

REFUSALS = [
    # The lane itself.
    Refusal("lane None", lambda: swept(None), "lane must be a function of the grid's parameters, got None"),
    Refusal("lane a text", lambda: swept("lane"), "lane must be a function of the grid's parameters, got 'lane'"),
    Refusal(
        "lane a problem", lambda: swept(problem(0.1)), "lane must be a function of the grid's parameters, got Prob"
    ),
    Refusal("another parameter", lambda: swept(lane, {"beta": [1.0]}), r"takes \(alpha\), but the .* grid are beta"),
    Refusal("no parameter", lambda: swept(lambda: lane(0.1)), r"takes \(\), but the parameters of the grid are alpha"),
    Refusal("too few", lambda: swept(lambda alpha, t: lane(alpha)), "missing a required argument: 't'"),
    Refusal("one too many", lambda: swept(lane, {"alpha": [0.1], "t": [1.0]}), "unexpected keyword argument 't'"),
    Refusal(
        "by position", lambda: swept(lambda alpha, /: lane(alpha)), "takes .* the parameters of the grid are alpha"
    ),
    Refusal("returns None", lambda: swept(lambda alpha: None), r"the lane must return \(Problem, w0\), got None"),
    Refusal("returns a problem", lambda: swept(lambda alpha: problem(alpha)), r"must return \(Problem, w0\), got Prob"),
    Refusal("returns three", lambda: swept(lambda alpha: (*lane(alpha), 3)), r"must return \(Problem, w0\), got \("),
    Refusal("the class", lambda: swept(lambda alpha: (mj.Problem, START)), r"must return \(Problem, w0\), got \("),
    Refusal("weights of text", lambda: swept(lambda alpha: (problem(alpha), ("a", "b"))), "w0.0. must be a number"),
    # Python where JAX has a traced number.
    Refusal("if", lambda: swept(lambda alpha: lane(alpha if alpha > 0.1 else 0.0)), VALUES),
    Refusal("float()", lambda: swept(lambda alpha: lane(float(alpha))), VALUES),
    Refusal("numpy", lambda: swept(lambda alpha: lane(np.sqrt(alpha))), VALUES),
    Refusal("np.asarray", lambda: swept(lambda alpha: lane(np.asarray(alpha))), VALUES),
    Refusal("and", lambda: swept(lambda alpha: lane(alpha and 1.0)), VALUES),
    Refusal("a tracer is kept", lambda: swept(keeping), "uses a traced value that an earlier call kept.*pure function"),
    # Structure is no axis of a grid.
    Refusal("a loop over a parameter", lambda: swept(by_depth, {"depth": [2, 3]}), STRUCTURE),
    Refusal("a shape of a parameter", lambda: swept(by_size, SIZES), STRUCTURE),
    Refusal("a slice of a parameter", lambda: swept(by_slice, SIZES), STRUCTURE),
    Refusal("a list of that length", lambda: swept(lambda size: lane([1.0, 2.0][size]), SIZES), STRUCTURE),
    Refusal("np.zeros", lambda: swept(lambda size: lane(np.zeros(size)), SIZES), STRUCTURE),
    Refusal("jnp.arange", lambda: swept(lambda size: lane(jnp.arange(size)[0]), SIZES), STRUCTURE),
    Refusal("jnp.linspace", lambda: swept(lambda size: lane(jnp.linspace(0, 1, size)[0]), SIZES), STRUCTURE),
    Refusal("reshape", lambda: swept(lambda size: lane(jnp.ones(4).reshape(size, -1)[0, 0]), SIZES), STRUCTURE),
    Refusal("int()", lambda: swept(lambda size: lane(0.1 * int(size)), SIZES), STRUCTURE),
    Refusal("a mask", lambda: swept(lambda size: lane(jnp.ones(4)[jnp.arange(4) < size].sum()), SIZES), STRUCTURE),
    # Metrics.
    Refusal("metrics a number", lambda: swept(lane, metrics=3), r"metrics must be a function of \(t, x, w\), got 3"),
    Refusal(
        "metrics with if", lambda: swept(lane, metrics=lambda t, x, w: t if t > 0 else x[0]), "metrics needs the value"
    ),
    Refusal(
        "metrics by numpy", lambda: swept(lane, metrics=lambda t, x, w: np.linalg.norm(x)), "metrics needs the value"
    ),
    Refusal("metrics of text", lambda: swept(lane, metrics=lambda t, x, w: {"a": "x"}), "metrics must return numbers"),
    Refusal("metrics of functions", lambda: swept(lane, metrics=lambda t, x, w: len), "metrics must return numbers"),
    # Inside transformations.
    Refusal("jax.grad", lambda: jax.grad(total_loss)(1.0), INSIDE),
    Refusal("jax.vmap", lambda: jax.vmap(total_loss)(jnp.ones(2)), INSIDE),
    Refusal("jax.jit", lambda: jax.jit(total_loss)(1.0), INSIDE),
    Refusal("a traced t1", lambda: jax.grad(lambda t1: swept(lane, t1=t1).loss.values.sum())(1.0), INSIDE),
    Refusal("a traced grid", lambda: jax.jit(lambda a: swept(lane, {"alpha": a}).loss.values)(jnp.ones(2)), INSIDE),
    # Settings.
    Refusal("steady a text", lambda: swept(lane, steady="x"), "steady must be a number"),
    Refusal("steady zero", lambda: swept(lane, steady=0.0), "steady must be positive and finite, got 0"),
    Refusal("steady NaN", lambda: swept(lane, steady=np.nan), "steady must be positive and finite, got nan"),
    Refusal("chunk a fraction", lambda: swept(lane, chunk=1.5), "chunk must be a whole number of at least 1, got 1.5"),
    Refusal("an unknown keyword", lambda: swept(lane, adjoint=None), r"sweep\(\) has no argument adjoint"),
    Refusal("t1 a list", lambda: swept(lane, t1=[1.0, 2.0]), "t1 must be a scalar, got shape"),
    # Experiments.
    Refusal("seed 2**32", lambda: Setting("quick", 2**32, 64), "seed must be a whole number from 0 to 4294967295"),
    Refusal("seed negative", lambda: Setting("quick", -1, 64), "seed must be a whole number from 0 to .*, got -1"),
    Refusal("seed a truth", lambda: Setting("quick", True, 64), "seed must be a whole number .*, got True"),
    Refusal("seed a fraction", lambda: Setting("quick", cast(Any, 1.5), 64), "seed must be a whole number .*, got 1.5"),
    Refusal("16 bits", lambda: Setting("quick", 0, 16), "bits must be 32 or 64, got 16"),
    Refusal(
        "no place of a function", lambda: Experiment("x", "y", "module"), 'must be a function or "module:function"'
    ),
    # Figures.
    Refusal("no panel", lambda: plot.line_panels([], "x"), "a figure needs at least one panel"),
    Refusal(
        "a line of two lengths", lambda: plot.line_panels([uneven()], "x"), r"'a' has x of shape \(2,\), y of \(3,\)"
    ),
    Refusal(
        "lines that look alike", lambda: plot.line_panels([twins()], "x"), "the lines 'a' and 'b' .* another style"
    ),
    Refusal("no pictures", lambda: plot.image_grid([], "x"), "the same number of pictures, at least one, got {}"),
    Refusal("rows of pictures", lambda: plot.image_grid(PICTURES, "x"), "got {'a': 1, 'b': 2}"),
    Refusal("a column of zero", lambda: heat_map(np.ones((2, 2)), [0.0, 1.0]), "columns must be two or more positive"),
    Refusal("a lone column", lambda: heat_map(np.ones((2, 1)), [1.0]), "columns must be two or more positive numbers"),
    Refusal("other columns", lambda: heat_map(np.ones((2, 2)), [1.0, 2.0, 3.0]), "coordinates of values of shape"),
    Refusal("no preset", lambda: Experiment("x", "y", print, presets=()), "needs at least one preset"),
]


@table(REFUSALS)
def test_refusals(row):
    KEPT.clear()
    row.check()


def one_depth(alpha, depth):
    g = mj.Hadamard(depth)
    return mj.Problem(g, mj.WeightDecay(), alpha, F), (jnp.ones(2), *(0.5 * jnp.ones(2) for _ in range(depth - 1)))


def loss_of_a_depth() -> tuple[Any, Any]:
    """What the refusal advises: a sweep for each depth. At t = 0 the loss is |w1 w2 w3 - y|^2 / (2 n) = (3/4)^2 / 2."""
    dataset = swept(functools.partial(one_depth, depth=3), {"alpha": [0.1]}, saveat=[0.0])
    return dataset.loss.values, [[0.75**2 / 2]]


def a_numpy_seed() -> tuple[Any, Any]:
    setting = Setting("quick", cast(Any, np.int64(7)), 64)
    return (setting.seed, type(setting.seed) is int), (7, True)


RIGHTS = [
    Right("a sweep of one depth", loss_of_a_depth, 1e-12),
    Right("a seed of NumPy", a_numpy_seed, 0.0),
]


@table(RIGHTS)
def test_rights(row):
    row.check()


def test_a_table_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(ValueError, match=r"x.csv is not a CSV file in UTF-8"):
        read_rows(tmp_path / "x.csv")
