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
# # Deep networks with weight decay: which bias is stored, and when is it too late to recover?
#
# Every coordinate of $x = w_1 w_2 \cdots w_p$ is a deep linear network of width one. At depth $p = 2$ weight decay
# commutes with $g$, and the paper's theory holds (Jacobs, Zhou, Burkholz, [arXiv
# 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.6). From depth 3 on it does not, and the paper stops. But
# there decay still *normalises* $g$: with $h = c\,|w|^2$
#
# $$[\nabla h, \nabla g_i] = \Lambda\, \nabla g_i , \qquad \Lambda = -2c\,(p-2) .$$
#
# Decay shrinks all weights by $e^{s}$, $s = 2ca$, and slows a clock. With $\nu = e^{-a\Lambda} \mu$,
#
# $$w = e^{s} V, \qquad \dot\nu = -e^{(p-2)s}\, \nabla f(x), \qquad x = e^{ps}\, \nabla Q_0(\nu) ,$$
#
# where $\nabla Q_0$ is the inverse mirror map of $g$ alone and $V = \psi_0(\nu)$ its weights. $R_a$ exists, and its
# dual variable leaks: $\dot\mu = -\nabla f - \alpha \Lambda \mu$.

# %%
import os

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
# **Does $R_a$ describe the flow of the weights?** The flow knows nothing of $R_a$. Along it, after decay and with
# decay, $\nabla R_{a_t}(x_t)$ must have the derivative $-\nabla f - \alpha \Lambda \mu$; so $\nu = e^{-a\Lambda}
# \nabla R_a(x)$ must never leave $\operatorname{range}(Z^\top)$.

# %%
key = jax.random.key(3)
Z = jax.random.normal(key, (6, 16))
x_true = jnp.zeros(16).at[:2].set(1.0)
f = mj.LeastSquares(Z, Z @ x_true)
g, h = mj.Hadamard(3), mj.WeightDecay()
w0 = (jnp.zeros(16), jnp.ones(16), jnp.ones(16))
R = mj.legendre(g, h, w0)
print(f"leak of R: {float(R.leak)}")

t_off = 2.0
problem = mj.Problem(g, h, mj.SwitchOff(0.25, t_off), f)
ts = jnp.linspace(0.0, 30.0, 16)
sol = mj.solve(problem, w0, t1=30.0, saveat=ts, rtol=1e-9, atol=1e-11)
residual = jax.jit(jax.vmap(lambda x, a: mj.kkt_residual(R, f, x, a)))(sol.x[1:], sol.a[1:])
print(f"distance of grad R_a(x) from range(Z^T), relative, at most {float(jnp.max(residual)):.1e}")

# %% [markdown]
# **The interval of $\nu$ has ends.** From $(0, 1, 1)$ the inverse mirror map is $\tan\nu \sec^2\nu$, on $(-\pi/2,
# \pi/2)$: a coordinate can only keep its size against decay if its $\nu$ comes near an end. At depth 2 the interval
# is infinite.

# %%
print("dual interval at a = 0:", *(f"{float(end[0]):.4f}" for end in R.dual_interval(0.0)))
for a in (0.0, -1.0, -5.0, -15.0):
    print(f"a = {a:5.1f}: clock {float(mj.clock(R, a)):.1e}")

# %% [markdown]
# **Beyond which decay does a coordinate die?** One coordinate with target 1, under constant decay. All its stationary
# points but 0 lie on the curve $2 \alpha = (1 - x)\, x^{1 - 2/p}$, which has a largest $\alpha$ at
# `critical_strength`.

# %%
one = mj.LeastSquares(jnp.ones((1, 1)), jnp.ones(1))
figure, axis = plt.subplots(figsize=(7, 4))
for depth, color in zip((2, 3) if short else (2, 3, 4), ("C0", "C1", "C2"), strict=False):
    start = tuple(jnp.ones(1) for _ in range(depth))

    def lane(alpha, depth=depth, start=start):
        return mj.Problem(mj.Hadamard(depth), h, mj.Constant(alpha), one), start

    critical = float(mj.critical_strength(depth, 1.0))
    strengths = critical * np.linspace(0.1, 1.3, 9 if short else 25)
    x_end = mj.sweep(lane, {"alpha": strengths}, t1=300.0).x[:, 0]
    x = np.linspace(1e-4, 1.0, 400)
    axis.plot((1 - x) * x ** (1 - 2 / depth) / 2, x, color=color, label=f"depth {depth}: {critical:.4f}")
    axis.plot(strengths, x_end, "o", color=color, markersize=4)
axis.set(xlabel=r"constant strength $\alpha$", ylabel="x at the end", title="Lines: stationary points; dots: flows")
axis.legend(title="critical strength")
plt.show()

# %% [markdown]
# At depth 2 the end point shrinks to 0 continuously: this is the Lasso. From depth 3 on it *jumps* to 0. The upper
# part of each curve is stable, the lower part is not, and they meet at the critical strength.
#
# **How late is a recovery?** After the switch-off a dead coordinate grows again, but its clock is slow.
# `remaining_time` is the least time it needs: $|\nabla R_a(x) - \mu| / \sup|\partial f|$. Here $|\partial f| \le 1$,
# and the time until $x = 1/2$ is measured on the flow of the weights.

# %%
scalar = tuple(w[:1] for w in w0)
R1 = mj.legendre(g, h, scalar)
spent = np.linspace(-1.5, -3.0, 3) if short else np.linspace(-1.0, -4.0, 7)
times = np.concatenate([[0.0, 1.0], 1.0 + np.geomspace(0.1, 150.0, 400)])


def recovery(s):
    return mj.Problem(g, h, mj.SwitchOff(-s / 2, 1.0), one), scalar


paths = mj.sweep(recovery, {"s": spent}, t1=times[-1], saveat=times, metrics=lambda t, x, w: {"path": x})
path = paths.path.values[..., 0]
taken = np.array([times[np.argmax((x > 0.5) & (times > 1.0))] - 1.0 for x in path])
least = jax.jit(jax.vmap(lambda x, a: mj.remaining_time(R1, [0.5], R1.dual(x, a).value, a, 1.0).value[0]))
bound = least(jnp.asarray(path[:, 1:2]), jnp.asarray(spent / 2))
for s, measured, at_least in zip(spent, taken, bound, strict=True):
    print(f"s = {s:4.1f}   recovered after {measured:6.1f}   least time {float(at_least):6.1f}")

# %% [markdown]
# The bound is nearly the truth, so the formula can say what no integration should be asked for: decay of strength 0.3
# until $t = 50$ means $s = -30$, and the recovery then takes more than $10^{12}$ time units. A run that looks stuck
# is on its way, on a clock that it cannot see.

# %%
for alpha in (0.05, 0.1, 0.2, 0.3):
    a = -50.0 * alpha
    way = float(mj.remaining_time(R1, [1.0], [0.0], a, 1.0).value[0])
    print(f"alpha = {alpha:4.2f} until t = 50: the whole way from nu = 0 takes at least {way:.1e}")

# %% [markdown]
# **Which bias is stored?** As $\Lambda$ is a multiple of the identity, $\nu$ stays in $\operatorname{range}(Z^\top)$,
# and the limit after the switch-off is $\operatorname{argmin} R_a$ subject to $Zx = y$, at every depth. As $s \to
# -\infty$ it tends to the solution of least *weighted* norm $\sum t_i^+ x_i^+ + t_i^- x_i^-$, with $t^\pm$ the ends
# of the interval, which a linear program finds.

# %%
strengths = -np.linspace(0.0, 3.0, 7 if short else 25)
limits = jax.jit(jax.vmap(lambda a: mj.predict_limit(R, f, a)))(jnp.asarray(strengths))
lower, upper = R.dual_interval(0.0)
costs = np.concatenate([upper, -lower])
parts = linprog(costs, A_eq=np.hstack([Z, -Z]), b_eq=f.y).x
least_norm = parts[:16] - parts[16:]
distance = np.linalg.norm(limits.x - least_norm, axis=1)
print("statuses:", set(mj.status_name(limits.result).tolist()))
print(f"distance from the least weighted norm: {distance[0]:.2f} without decay, {distance[-1]:.1e} at a = -3")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
left.plot(strengths, limits.x[:, 2:], color="0.6", linewidth=1)
left.plot(strengths, limits.x[:, :2], color="C0")
left.set(xlabel="a", ylabel="entries of the limit", title="Blue: the two entries of x*")
left.invert_xaxis()
right.plot(strengths, distance, "o-", markersize=4)
right.plot(strengths, distance[-1] * np.exp(6 * (strengths - strengths[-1])), "k--", linewidth=1)
right.set(yscale="log", xlabel="a", ylabel="distance", title=r"To the least weighted norm; dashed: $e^{3s}$")
right.set_ylim(distance.min() / 3, 10)
right.invert_xaxis()
plt.show()

# %% [markdown]
# Strong decay therefore stores the bias of an infinitesimal start, from any start. The price is the clock: the bias
# is the better, the later it shows.
#
# ## Exercise
#
# Which depth pays more for the same decay? Compare the least time of depth 3, 4 and 5 at $s = -4$, and the decay that
# each of them needs to come within $10^{-3}$ of its least weighted norm.
#
# *Hint:* build `R` for each depth from $(0, 1, \dots, 1)$; the clock is $e^{(p-2)s}$, and the distance falls like
# $e^{ps}$.
#
# [Solution](../docs/solutions.md)
