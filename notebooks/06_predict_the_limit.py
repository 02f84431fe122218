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
# # Where will training end, and how much decay does a sparse answer need?
#
# If $f$ sees $x$ only through $Zx$, and decay is switched off with $a = -\int \alpha$ spent, then a flow that fits
# ends at
#
# $$x_\infty = \operatorname{argmin}_x R_a(x) \quad \text{subject to} \quad Zx = y, \qquad \text{that is} \quad
# \nabla R_a(x_\infty) \in \operatorname{range}(Z^\top)$$
#
# (Jacobs, Zhou, Burkholz, [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.11). No time appears in it.
# Its convex dual, $\min_\nu Q_a(Z^\top \nu) - \langle \nu, y \rangle$ with $Q_a = R_a^*$, has no constraint, and a few
# damped Newton steps solve it. For $x = m \odot w$ with weight decay, $\nabla R_a(x) = \frac12
# (\operatorname{arcsinh}(x/A) - \ell)$ with $A = \frac12 m_0^2 e^{4a}$ from $w_0 = 0$: for large $A$ this is nearly
# linear in $x$ and the answer the one of least L2 norm, for small $A$ it is a logarithm and the answer the one of
# least L1 norm. Decay takes $A$ from the one end to the other.

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linprog

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **The problem and its two ends.** Forty unknowns, twenty measurements, a true $x^*$ with four entries. The solutions
# of least L2 and L1 norm come from linear algebra and from a linear program, outside this library.

# %%
Z = jax.random.normal(jax.random.key(1), (20, 40))
x_true = jnp.zeros(40).at[:4].set(jnp.array([2.0, -1.5, 1.0, -0.5]))
f = mj.LeastSquares(Z, Z @ x_true)
w0 = (jnp.full(40, 3.0), jnp.zeros(40))  # a large start: A is large before decay

least_l2 = np.linalg.lstsq(Z, f.y)[0]
parts = linprog(np.ones(80), A_eq=np.hstack([Z, -Z]), b_eq=f.y).x  # x = positive part - negative part
least_l1 = parts[:40] - parts[40:]
print(f"|least L1 - x*| = {np.linalg.norm(least_l1 - x_true):.1e}")
print(f"|least L2 - x*| = {np.linalg.norm(least_l2 - x_true):.2f}")

# %% [markdown]
# **The predicted limits** for a range of $a$, by `mj.map_grid`, each with its *KKT residual*: the distance of
# $\nabla R_a(x)$ from $\operatorname{range}(Z^\top)$, relative to its length.

# %%
R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), w0)


def predicted(a):
    limit = mj.predict_limit(R, f, a)
    return {"x": limit.x, "kkt": limit.kkt_residual, "steps": limit.steps, "status": limit.result}


totals = np.linspace(0.0, 7.0, 8 if short else 71)
limits = mj.map_grid(predicted, {"a": -totals})
print(f"statuses: {limits.status.to_series().value_counts().to_dict()}")
print(f"largest KKT residual {float(limits.kkt.max()):.1e}, at most {int(limits.steps.max())} Newton steps")

# %% [markdown]
# **The flow**, for a few of the totals, spent up to $t = 5$ and run on to $t = 500$.

# %%
t_off, t1 = 5.0, (100.0 if short else 500.0)
spent = np.array([0.5, 3.0] if short else [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def lane(total):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(total / t_off, t_off), f), w0


flow = mj.sweep(lane, {"total": spent}, t1=t1)
ends = mj.map_grid(predicted, {"a": -spent})
for i, total in enumerate(spent):
    gap = float(np.linalg.norm(flow.x[i].values - ends.x[i].values))
    kkt = float(mj.kkt_residual(R, f, jnp.asarray(flow.x[i].values), -total))
    print(
        f"a = {-total:4.1f}   |flow - limit| = {gap:.1e}   KKT residual of the flow {kkt:.1e}"
        f"   solver steps {int(flow.steps[i]):5d}   Newton steps {int(ends.steps[i])}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
for target, label, marker in ((least_l2, "least L2 norm", "o"), (least_l1, "least L1 norm", "s")):
    (line,) = left.plot(totals, np.linalg.norm(limits.x - target, axis=1), label=f"limit, from {label}")
    distance = np.linalg.norm(flow.x - target, axis=1)
    left.plot(spent, distance, marker, color=line.get_color(), label=f"flow, from {label}")
left.set(
    yscale="log",
    ylim=(1e-5, 5),
    xlabel=r"regularization spent, $|a|$",
    ylabel="distance",
    title="From one end to the other",
)
left.legend(loc="lower left")
right.plot(totals, limits.x[:, 4:], color="0.6", linewidth=1)
right.plot(totals, limits.x[:, :4], color="C0")
right.plot(np.full(4, totals[-1]), x_true[:4], "k<", clip_on=False)
right.set(xlabel=r"regularization spent, $|a|$", ylabel="entries of the limit", title="Marks: the four entries of x*")
plt.show()

# %% [markdown]
# The limit leaves the L2 end and tends to the L1 end. The entries that are not in $x^*$ (gray) shrink all together,
# and the four that stay are not shrunk in the end. The flows satisfy the KKT condition at any time, since $\mu = -\int
# \nabla f$ never leaves $\operatorname{range}(Z^\top)$; what they lack after strong decay is the *fit*, for which
# $t_1$ was too short. The prediction needs no $t_1$.
#
# **How much decay was needed?** The first total on the grid from which on the limit is within $10^{-3}$ of the L1
# solution:

# %%
distance = np.linalg.norm(limits.x - least_l1, axis=1)
within = totals[distance < 1e-3]
print(f"|a| = {within[0]:.1f}" if within.size else "more than was tried")

# %% [markdown]
# **What it costs.** The same answer both ways, compiled beforehand.

# %%
prediction = jax.jit(lambda a: mj.predict_limit(R, f, a).x)
integration = jax.jit(lambda total: mj.solve(lane(total)[0], w0, t1=t1).x[-1])
for name, function, argument in (("predicted", prediction, -3.0), ("integrated", integration, 3.0)):
    jax.block_until_ready(function(argument))
    begin = time.perf_counter()
    jax.block_until_ready(function(argument))
    print(f"{name:10} {1000 * (time.perf_counter() - begin):7.1f} ms")

# %% [markdown]
# ## Exercise
#
# The limit is differentiable in $a$. Find the total for which the *L1 norm* of the limit is 1% above its minimum, by
# Newton's method on $a$, and check it against the curve of a fine grid.
#
# *Hint:* `jax.value_and_grad` of `lambda a: jnp.sum(jnp.abs(mj.predict_limit(R, f, a).x))`, from $a = -2$; the excess
# falls nearly exponentially, so that Newton on its logarithm needs few steps.
#
# [Solution](../docs/solutions.md)
