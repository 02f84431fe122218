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
# # What is left of weight decay after it is switched off?
#
# A matrix of low rank is to be found from too few measurements: $f(X) = \frac{1}{2k} \sum_i (\langle A_i, X \rangle -
# y_i)^2$ with $X = U U^\top$ and decay $h(U) = |U|_F^2$. Where the $A_i$ commute, the eigenvalues of $X$ follow a
# mirror flow with the time-dependent Legendre function (Jacobs, Zhou, Burkholz, [arXiv
# 2504.12883](https://arxiv.org/abs/2504.12883), Eq. (10), (17))
#
# $$R_a(x) = \tfrac14 \sum_i \left( x_i \log \tfrac{x_i}{x_{0,i}} - x_i \right) + |a| \sum_i x_i, \qquad
# a_t = -\int_0^t \alpha(s)\,ds .$$
#
# Decay adds an L1 norm of the eigenvalues, the nuclear norm, and its weight $|a|$ is what was *spent*, not what acts
# now. While $\alpha > 0$ it also acts now, and moves the end point away from every $X$ that fits. Switching off removes
# the second effect and keeps the first. Here the $A_i$ are random and do **not** commute, so that the theory makes no
# promise: what it says is measured.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **The problem.** $X^*$ has rank 2 and nuclear norm 1; there are fewer measurements than unknowns.

# %%
n, rank, measurements = 15, 2, 65
of_X, of_A = jax.random.split(jax.random.key(0))
factor = jax.random.normal(of_X, (n, rank))
X_true = factor @ factor.T / jnp.sum(factor**2)
B = jax.random.normal(of_A, (measurements, n, n))
A = (B + jnp.swapaxes(B, 1, 2)) / 2
f = mj.MatrixSensing(A, jnp.einsum("mij,ij->m", A, X_true))
U0 = jnp.eye(n)
print(f"{measurements} measurements of {n * (n + 1) // 2} unknowns; eigenvalues of X*:", end=" ")
print(np.round(np.linalg.eigvalsh(X_true)[::-1][: rank + 1], 4))

# %% [markdown]
# **Four ways to spend.** No decay, and three with the same total $\int_0^{t_1} \alpha = 6$: spread over the whole time,
# in the first half, in the first twentieth. After its switch-off a flow has nothing left but $f$.

# %%
t1, total = (200.0 if short else 800.0), 6.0
ts = np.geomspace(0.1, t1, 300)
schedules = {
    "no decay": mj.SwitchOff(0.0, 0.0),
    "all the time": mj.SwitchOff(total / t1, np.inf),
    "first half": mj.SwitchOff(2 * total / t1, t1 / 2),
    "first 1/20": mj.SwitchOff(20 * total / t1, t1 / 20),
}
STYLES = ("-", "--", "-.", ":")
runs = {}
for name, schedule in schedules.items():
    problem = mj.Problem(mj.Gram(), mj.WeightDecay(), schedule, f)
    runs[name] = mj.solve(problem, U0, t1=t1, saveat=ts)
    X = runs[name].x[-1]
    error = float(jnp.linalg.norm(X - X_true) / jnp.linalg.norm(X_true))
    print(f"{name:13} a = {float(runs[name].a[-1]):4.1f}   loss {float(runs[name].loss[-1]):.1e}", end="   ")
    print(f"nuclear norm {float(jnp.trace(X)):.4f}   relative error of X {error:.1e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for style, (name, sol) in zip(STYLES, runs.items(), strict=True):
    errors = jnp.linalg.norm(sol.x - X_true, axis=(1, 2)) / jnp.linalg.norm(X_true)
    left.plot(sol.ts, errors, style, label=name)
    right.plot(sol.ts, jnp.trace(sol.x, axis1=1, axis2=2), style)
left.set(xscale="log", yscale="log", xlabel="time t (flow)", ylabel=r"$|X_t - X^*| / |X^*|$", title="Relative error")
right.set(xscale="log", yscale="log", xlabel="time t (flow)", ylabel=r"$\mathrm{tr}\, X_t$", title="Nuclear norm")
right.axhline(1.0, color="0.6", linewidth=1)
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# All three that spent the total come to a halt, at a wrong place, while decay acts. For the two that switch off the
# error then drops, and goes on falling towards $X^*$. The one that never stops ends with a nuclear norm *below* that of
# $X^*$ (the gray line), and more time would not help it, as the next cell says.
#
# **What constant decay cannot recover.** Its end point is a stationary point of $f(X) + \alpha\, \mathrm{tr} X$ over
# positive semidefinite $X$: $-\nabla f(X) \preceq \alpha I$ with equality on the range of $X$. There $\nabla f = 0$ is
# impossible, so no exact fit is.

# %%
sol = runs["all the time"]
alpha = total / t1
slope = np.linalg.eigvalsh(-f.gradient(sol.x[-1]))[::-1]
print(f"largest eigenvalues of -grad f, over alpha: {np.round(slope[:4] / alpha, 4)}")

# %% [markdown]
# **Eigenvalue by eigenvalue.** Black marks are the eigenvalues of $X^*$.

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3.8), sharey=True)
for index, (axis, (name, sol)) in enumerate(zip(axes, runs.items(), strict=True)):
    axis.plot(sol.ts, jnp.linalg.eigvalsh(sol.x), color=f"C{index}", linewidth=1.2)
    axis.plot([t1] * rank, np.linalg.eigvalsh(X_true)[-rank:], "k<", clip_on=False)
    axis.set(xscale="log", yscale="log", xlabel="time t (flow)", title=name, ylim=(1e-6, 2))
axes[0].set_ylabel("eigenvalues of X")
plt.show()

# %% [markdown]
# Without decay most eigenvalues stay large. With it all fall at first. After an early switch-off the two that the data
# ask for grow back, and the others stay small although nothing pushes them down any more. That is the stored bias.
#
# **The geometry that is stored.** For one eigenvalue, `mj.explain` follows $\operatorname{argmin} R_a$ (the positional
# bias) and the type of bias (2 is L2-like, 1 is L1-like) along a schedule.

# %%
R = mj.legendre(mj.Square(), mj.WeightDecay(), jnp.ones(1))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for index, (name, schedule) in enumerate(schedules.items()):
    effects = mj.explain(R, schedule, ts, scale=0.5).effects
    left.plot(ts, effects.minimizer[:, 0], STYLES[index], label=name)
    right.plot(ts, effects.local_exponent, STYLES[index])
left.set(xscale="log", yscale="log", xlabel="time t (flow)", ylabel=r"$\operatorname{argmin} R_a$", title="Position")
right.set(xscale="log", xlabel="time t (flow)", ylabel="local exponent at distance 0.5", title="Type: 2 is L2, 1 is L1")
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# Whoever spent the same ends at the same $R_a$; after a switch-off the curve is flat, since nothing is forgotten. What
# differs is *when* the geometry is there, and whether $f$ is left alone with it afterwards.
#
# ## Exercise
#
# Is it the decay, or the factors? Repeat the flow "first 1/20" with `mj.Linear()` in the place of `mj.Gram()`, weights
# $X_0 = I$, and the same decay, now of $X$ itself. What is left of the decay at the end?
#
# *Hint:* compare with the solution of least Frobenius norm, `jnp.linalg.lstsq` of the flattened $A_i$ and $y$. Then
# change the total, and see whether the answer moves.
#
# [Solution](../docs/solutions.md)
