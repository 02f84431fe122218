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
# # Can weight decay find a sparse answer, if it is switched off in time?
#
# Write the parameters as a product, $x = m \odot w$, and train $m$ and $w$ by gradient flow with weight decay:
#
# $$\dot w = -\nabla_w \left[ f(g(w)) + \alpha(t)\, h(w) \right], \qquad g(m, w) = m \odot w, \quad
# h(m, w) = |m|^2 + |w|^2 .$$
#
# Then $x$ follows a *time-dependent mirror flow*: among all $x$ that fit the data it prefers small values of a convex
# function $R_a(x)$, and $R_a$ depends on the decay only through what was spent of it, $a_t = -\int_0^t \alpha(s)\,ds$.
# Decay that was switched off has gone by, but $a$ stays where it is, and so does the preference
# (Jacobs, Zhou, Burkholz, [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorems 3.6 and 3.11).

# %%
import os

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **The data.** One hundred unknowns, forty measurements without noise, and a true $x^*$ of five ones. Infinitely many
# $x$ fit; which one training finds is decided by its implicit bias alone.

# %%
Z = jax.random.normal(jax.random.key(0), (40, 100))
x_true = jnp.zeros(100).at[:5].set(1.0)
f = mj.LeastSquares(Z, Z @ x_true)  # f(x) = |Zx - y|^2 / (2n)
w0 = (jnp.ones(100), jnp.zeros(100))  # m = 1, w = 0


def lane(alpha, t_off):  # decay of strength alpha until t_off, none after
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f), w0


# %% [markdown]
# **Three flows**: no decay, decay that is never switched off, and the same decay switched off at $t = 50$.

# %%
t1 = 550.0
ts = jnp.linspace(0.0, t1, 221)
schedules = {"no decay": (0.0, 0.0), "decay, never off": (0.3, np.inf), "decay, off at t = 50": (0.3, 50.0)}
runs = {name: mj.solve(lane(*numbers)[0], w0, t1=t1, saveat=ts) for name, numbers in schedules.items()}
for name, sol in runs.items():
    error = float(jnp.linalg.norm(sol.x[-1] - x_true))
    print(f"{name:22} loss {float(sol.loss[-1]):.1e}   error {error:.1e}   steps {int(sol.stats['steps'])}")

# %%
figure, (left, right) = plt.subplots(1, 2)
for style, (name, sol) in zip(("-", "--", "-."), runs.items(), strict=True):
    left.plot(ts, jnp.linalg.norm(sol.x - x_true, axis=1), style, label=name)
left.axvline(50, color="0.6", linewidth=1, linestyle=":")
left.set(yscale="log", xlabel="time t (flow)", ylabel=r"error $|x_t - x^*|$", title="Error over time")
for index, (marker, (name, sol)) in enumerate(zip("sov", runs.items(), strict=True)):
    right.plot(np.arange(20) + 0.25 * (index - 1), sol.x[-1, :20], marker, markersize=5, label=name)
right.set(xlabel="coordinate (the first 20 of 100)", ylabel="x at the end", title="Where each flow ends")
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# Without decay the flow fits the data with many small entries. With decay for ever nearly everything is held at zero
# and nothing is fitted. Switched off, it looks just as bad at first, and finds the five ones *after* $t = 50$, when
# nothing but $f$ is left to be minimised.
#
# **Why: the function $R_a$.** `mj.legendre` recovers it from $g$, $h$ and $w_0$. Its minimiser under $Zx = y$ is where
# the flow will end, and can be found without integrating anything (Theorem 3.11).

# %%
R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), w0)
for name in ("no decay", "decay, off at t = 50"):
    sol = runs[name]
    limit = mj.predict_limit(R, f, sol.a[-1])
    gap = float(jnp.linalg.norm(limit.x - sol.x[-1]))
    print(f"{name:22} a = {float(sol.a[-1]):5.1f}   |predicted - flow| = {gap:.1e}   Newton steps {int(limit.steps)}")

# %% [markdown]
# **Many schedules at once.** `mj.sweep` takes the same function `lane`, solves every point of a grid under `jax.vmap`,
# and returns a labelled `xarray.Dataset`.

# %%
grid = {"alpha": [0.02, 0.1, 0.5] if short else np.geomspace(0.01, 1.0, 6), "t_off": [5.0, 20.0, 80.0]}
times = [550.0, 1100.0 if short else 4400.0]
ds = mj.sweep(lane, grid, t1=times[-1], saveat=times, metrics=lambda t, x, w: {"error": jnp.linalg.norm(x - x_true)})
print(ds.error.isel(time=-1).to_pandas().round(4))

# %% [markdown]
# If only the total $|a| = \alpha\, t_{\rm off}$ matters, all lanes must fall on one curve, the one predicted by $R_a$.
# `mj.map_grid` evaluates any function over a grid in the same way.

# %%
a_values = -np.geomspace(0.04, 90.0, 12 if short else 60)
limits = mj.map_grid(lambda a: jnp.linalg.norm(mj.predict_limit(R, f, a).x - x_true), {"a": a_values})

# %%
figure, axis = plt.subplots(figsize=(8, 4))
axis.plot(-a_values, limits.value, color="0.4", label="predicted from $R_a$, no integration")
for t_off, marker, color in zip(ds.t_off.values, "osD", ("C0", "C1", "C2"), strict=True):
    early, late = ds.error.sel(t_off=t_off).transpose("time", "alpha").values
    axis.plot(ds.alpha * t_off, early, marker, color=color, fillstyle="none")
    axis.plot(ds.alpha * t_off, late, marker, color=color, label=f"flow, off at t = {t_off:g}")
axis.set(xscale="log", yscale="log", ylim=(1e-6, 5), title=f"Hollow: t = {times[0]:g}. Filled: t = {times[1]:g}")
axis.set(xlabel=r"regularization spent, $|a| = \alpha\, t_{\rm off}$", ylabel=r"error $|x_t - x^*|$")
axis.legend(loc="lower left")
plt.show()

# %% [markdown]
# The schedules fall on one curve: strength and duration matter through their product only. Where much was spent the
# limit is nearer to $x^*$ and the way to it longer: the flow approaches the curve slowly, as the hollow and the filled
# marks show. Strong decay is not free: it leaves weights so small that they need time to grow back.
#
# **Derivatives.** The whole flow is differentiable in every number of the problem, here the switch-off time: how the
# loss at $t = 60$ depends on it. For one number forward mode compiles fastest; `jax.grad` works without the argument
# `adjoint`, and is what notebook 05 learns schedules with.

# %%
forward = diffrax.ForwardMode()
slope = jax.jacfwd(lambda t_off: mj.solve(lane(0.3, t_off)[0], w0, t1=60.0, adjoint=forward).loss[-1])(30.0)
print(f"d loss / d t_off = {float(slope):.4f}")

# %% [markdown]
# ## Exercise
#
# Five ones were found from forty measurements. How many could have been? Make the first $k$ entries of $x^*$ ones,
# $k = 1, \dots, 24$, and plot the error of the limit at $a = -10$ against $k$.
#
# *Hint:* no flow is needed. `mj.predict_limit` inside `mj.map_grid` over `k`, with `(jnp.arange(100) < k) * 1.0` as
# $x^*$, is one line. The error does not grow gradually.
#
# [Solution](../docs/solutions.md)
