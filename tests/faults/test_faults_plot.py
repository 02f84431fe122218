"""Bad input of `mirrorjax.plot`: one error that names what was got, and what to do."""

import jax.numpy as jnp
import xarray as xr
from faults_table import Refusal, table
from test_plot import a_dataset, a_solution

import mirrorjax as mj
from mirrorjax import plot

SOL, DS = a_solution(), a_dataset()
MANY = xr.concat([DS.loss] * 30, "seed").to_dataset()


def entropy() -> mj.AbstractLegendre:
    return mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(2), jnp.zeros(2)))


ROWS = [
    Refusal("no solution", lambda: plot.trajectories(3), "source must be what mirrorjax.solve or mirrorjax.sweep"),
    Refusal(
        "no such variable", lambda: plot.trajectories(SOL, "y"), "has no 'y' over time; it has loss, x, a, mu, norm"
    ),
    Refusal("no number", lambda: plot.trajectories(DS, "status"), "no variable of numbers 'status'; it has loss"),
    Refusal("no time", lambda: plot.trajectories(DS.isel(time=0)), "'loss' has no time axis; its dimensions are alpha"),
    Refusal("too many lanes", lambda: plot.trajectories(MANY), r"dataset\.isel\(seed=slice\(None, None, 3\)\)"),
    Refusal("no dataset", lambda: plot.sweep_map(3, "loss"), "dataset must be what mirrorjax.sweep returned"),
    Refusal("one parameter", lambda: plot.sweep_map(DS.isel(alpha=0), "loss"), r"or more values, got t_off \(3\)"),
    Refusal("three parameters", lambda: plot.sweep_map(MANY, "loss"), r"got seed \(30\), alpha \(2\), t_off \(3\)"),
    Refusal("half a mark", lambda: plot.sweep_map(DS, "loss", mark={"alpha": 1}), "a value for each of alpha, t_off"),
    Refusal("no R", lambda: plot.potential(3, [0.0]), "R must be what mirrorjax.legendre returned"),
    Refusal("a positive strength", lambda: plot.potential(entropy(), [1.0]), r"strengths a <= 0, .* got \[1\.0\]"),
    Refusal("no strength", lambda: plot.potential(entropy(), []), r"strengths a <= 0, .* got \[\]"),
    Refusal("no such coordinate", lambda: plot.potential(entropy(), [0.0], coordinate=2), "x has 2 coordinates, got"),
    Refusal("a gif", lambda: plot.save(plot.trajectories(SOL), "a.gif"), r"named \.png, \.pdf, \.svg, got a\.gif"),
]


@table(ROWS)
def test_refusals(row):
    row.check()
