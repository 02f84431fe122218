# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     notebook_metadata_filter: kernelspec
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which strengths and switch-off times recover the signal, and what happens to the runs that fail?
#
# In the limit $t \to \infty$ a schedule acts through one number, $a = -\int \alpha$ (Jacobs, Zhou, Burkholz,
# [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.11): all pairs (strength, switch-off time) with one
# product are equivalent. At a finite time, and with finite steps, they are not. That takes a grid of runs to see.
# `mj.sweep` solves all of them in one batch and gives each a *status*: one that fails spoils no other.

# %%
# %matplotlib inline
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import mirrorjax as mj
from mirrorjax import plot

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
plt.rcParams["legend.frameon"] = True  # white on colours needs a ground
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **A lane** is a function from parameters to a problem and its initial weights. Everything else stays fixed: here
# $x = m \odot w$ with weight decay, and five ones to be found from forty measurements.

# %%
Z = jax.random.normal(jax.random.key(0), (40, 100))
x_true = jnp.zeros(100).at[:5].set(1.0)
f = mj.LeastSquares(Z, Z @ x_true)


def lane(alpha, t_off):
    problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f)
    return problem, (jnp.ones(100), jnp.zeros(100))


# %% [markdown]
# **The grid** is a dictionary, one entry a dimension. `metrics` are computed during the run at the times of `saveat`,
# so that no trajectory has to be kept. The runs are gradient descent with step 0.25 on the clock of the flow, as a
# training loop would do it; without `flow=` they would be gradient flow.

# %%
grid = {"alpha": np.geomspace(0.02, 8.0, 4 if short else 12), "t_off": np.geomspace(2.0, 128.0, 3 if short else 10)}
settings = {
    "t1": 256.0,
    "saveat": np.arange(0.0, 257.0, 4.0),
    "flow": mj.Descent(optax.sgd(1.0), step_size=0.25),
    "metrics": lambda t, x, w: {"error": jnp.linalg.norm(x - x_true), "large": jnp.sum(jnp.abs(x) > 0.01)},
    "chunk": 1 if short else 4,  # lanes solved together; left out, as many as fit into memory
}
ds = mj.sweep(lane, grid, **settings)
ds

# %% [markdown]
# An `xarray.Dataset`: every variable has named dimensions, and values are looked up by their coordinates.

# %%
table = ds.error.isel(time=-1).sel(alpha=[0.1, 1.0, 8.0], t_off=[2.0, 20.0, 128.0], method="nearest")
print(table.to_pandas().round(4))
print()
print(ds.status.to_series().value_counts().to_string())

# %% [markdown]
# **Failures.** At the strongest decay the step is too long: descent is unstable where step times curvature exceeds 2,
# and the curvature of $\alpha (m^2 + w^2)$ alone is $2 \alpha$. These lanes are missing values with a status that says
# what to do, not numbers that look like results.

# %%
failed = sorted(set(ds.status.values.ravel()) - {"successful"})
for status in failed:
    strengths = ds.alpha.values[(ds.status == status).any("t_off").values]
    print(f"{status} at alpha {np.round(strengths, 2)}: step * 2 alpha = {np.round(0.25 * 2 * strengths, 2)}")
    print("advice:", mj.RESULTS[getattr(mj.RESULTS, status)])

# %% [markdown]
# **The heat map.** Failed lanes are hatched. The white line joins schedules that spend the same total. Figures of
# `mirrorjax.plot` are made without pyplot; `%matplotlib inline` above is what lets a notebook show them.

# %%
a_line = 10.0
figure = plot.heat_map(
    ds.error.isel(time=-1).values,
    ds.alpha.values,
    ds.t_off.values,
    title="Error at t = 256",
    row_label=r"strength $\alpha$",
    column_label=r"switched off at time $t_{\rm off}$",
    value_label=r"$|x - x^*|$",
    contour=plot.Line(ds.t_off.values, a_line / ds.t_off.values, rf"$\alpha\, t_{{\rm off}}$ = {a_line:g}", "--"),
)
figure

# %% [markdown]
# Along the white line, the error at the upper left is as small as anywhere: strong and short is as good as weak and
# long, until the step is too long for it. Above the line, where more was spent, there is a second way to fail that no
# status reports: too much decay for too long leaves weights so small that $t = 256$ comes before they have grown back.
#
# **Over time.** One strength, several switch-off times; `ds` is indexed by name.

# %%
chosen = ds.sel(alpha=0.5, method="nearest")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for t_off, color in zip(ds.t_off.values[::2], plt.colormaps["viridis"](np.linspace(0, 0.85, 5)), strict=False):
    run = chosen.sel(t_off=t_off)
    left.plot(run.time, run.error, color=color, label=f"off at t = {t_off:.3g}")
    right.plot(run.time, run.large, color=color)
left.set(yscale="log", xlabel="time t (step 0.25)", ylabel=r"error $|x_t - x^*|$")
right.set(yscale="symlog", xlabel="time t (step 0.25)", ylabel=r"entries with $|x_i| > 0.01$")
right.axhline(5, color="0.6", linewidth=1)
figure.suptitle(rf"$\alpha$ = {float(chosen.alpha):.2g}")
figure.legend(loc="outside right upper")
plt.show()

# %% [markdown]
# **A sweep that survives.** With `store=` results are kept in a folder as they come. Here a callback stops the sweep
# once a third of the lanes is through, as Ctrl-C or a lost machine would; `mj.open_sweep` shows what is on disk (lanes
# are written in groups, those under way are in a checkpoint), and `resume=True` goes on. The resumed sweep is the
# uninterrupted one from above, bit by bit.


# %%
def stop(report):
    if report.ended > len(ds.alpha) * len(ds.t_off) * (0.7 if short else 0.35):
        raise KeyboardInterrupt


with tempfile.TemporaryDirectory() as folder:
    store = os.path.join(folder, "first")
    try:
        mj.sweep(lane, grid, store=store, callback=stop, **settings)
    except KeyboardInterrupt:
        print("interrupted; on disk:", mj.open_sweep(store).status.to_series().value_counts().to_dict())
    resumed = mj.sweep(lane, grid, store=store, resume=True, **settings)
print("the same bits:", all(ds[name].equals(resumed[name]) for name in ds.data_vars))

# %% [markdown]
# **Anything else over a grid.** `mj.map_grid` maps any function of arrays, here the predicted limit
# ($t \to \infty$, no steps, no schedule) for each total that the sweep has spent, beside the error that was reached.

# %%
R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(100), jnp.zeros(100)))
totals = np.geomspace(0.04, 40.0, 8 if short else 40)
limits = mj.map_grid(lambda a: jnp.linalg.norm(mj.predict_limit(R, f, a).x - x_true), {"a": -totals})

figure, axis = plt.subplots(figsize=(8, 4))
axis.plot(totals, limits.value, color="0.4", label="predicted limit")
points = axis.scatter(
    *np.broadcast_arrays(ds.alpha * ds.t_off, ds.error.isel(time=-1)),
    c=np.broadcast_to(np.log2(ds.t_off), ds.status.shape),
    s=30,
    label="descent at t = 256",
)
figure.colorbar(points, label=r"$\log_2 t_{\rm off}$")
axis.set(xscale="log", yscale="log", ylim=(1e-5, 5), xlabel=r"regularization spent, $\alpha\, t_{\rm off}$")
axis.set(ylabel=r"error $|x - x^*|$")
axis.legend(loc="lower left")
plt.show()

# %% [markdown]
# Up to a total of about 1 the marks lie on the curve, whatever the switch-off time: there the prediction is all one
# needs. Beyond, time decides. The flow has a limit far better than what it has reached at $t = 256$, and where too
# much was spent it has hardly started. Dark marks off the crowd are strong decays, for which a step of 0.25 is no
# longer a flow.
#
# ## Exercise
#
# How much of this picture is due to the steps? Sweep the same grid as gradient *flow*, and draw the same heat map.
# Which lanes fail now? Where do the two maps differ most?
#
# *Hint:* leave `flow` out of `settings` (and `chunk`, to let the batch be chosen). Datasets on one grid subtract:
# `abs(a.error - b.error)`; its largest entries, `.to_series().nlargest()`, name their strengths.
#
# [Solution](../docs/solutions.md)
