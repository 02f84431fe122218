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
# # Does the theory hold for my own reparameterization?
#
# $R_a$ exists for a pair $(g, h)$ if $J = \partial g / \partial w$ has full rank and the vector fields $\nabla g_1,
# \dots, \nabla g_d, \nabla h$ commute: all *Lie brackets* vanish,
#
# $$[X, Y] = DX \cdot Y - DY \cdot X = 0 , \qquad X, Y \in \{\nabla g_1, \dots, \nabla g_d, \nabla h\}$$
#
# (Jacobs, Zhou, Burkholz, [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.6). Flowing along one and
# then the other then leads to the same weights in either order, and the order in which data and decay acted is
# forgotten. `mj.check` measures the brackets at sampled weights, for any $g$ and $h$ that JAX can differentiate.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")

# %% [markdown]
# **One that passes.** Any function of a pytree of arrays is a reparameterization, by `mj.Custom`.

# %%
w0 = {"m": jnp.array([1.0, 0.8, 1.2]), "w": jnp.array([0.3, 0.5, -0.2])}
product = mj.Custom(lambda w: w["m"] * w["w"], homogeneity=2)
print(mj.check(product, mj.WeightDecay(), w0))

# %% [markdown]
# From the top: the *verdict*; whether $J$ has full rank, and how well; the largest bracket among the $\nabla g_i$ and
# with $\nabla h$, each divided by its size, so that 0 is commuting and 1 is as far from it as can be; whether the
# flow map really has the Hessian $J J^\top$; whether $h \ge 0$ and whether $R_a$ is a Bregman
# function, which Theorem 3.10 asks for; the second is known of the library's own families only. What was looked at,
# and the tolerance, stand at the end: it is a measurement at points near `w0`, not a proof.
#
# **Some that do not.** Decay of one factor only, $h = |w|^2$, as is often done in practice; one factor more,
# $x = m\,w\,v$; and products of neighbours, $x_i = w_i w_{i+1}$, whose coordinates share weights.

# %%
decay_of_w = mj.CustomRegularizer(lambda w: jnp.sum(w["w"] ** 2), homogeneity=2)
depth3, w0_depth3 = mj.Hadamard(3), (w0["m"], w0["w"], jnp.array([1.1, 0.9, 0.7]))
neighbours = mj.Custom(lambda w: w[:-1] * w[1:], homogeneity=2)
reports = {
    "m w": mj.check(product, mj.WeightDecay(), w0),
    "m w, decay of w": mj.check(product, decay_of_w, w0),
    "m w v": mj.check(depth3, mj.WeightDecay(), w0_depth3),
    "neighbours": mj.check(neighbours, mj.WeightDecay(), w0["m"]),
}
for name, report in reports.items():
    print(f"{name:16} g with g {float(report.brackets.g_g):.1e}   g with h {float(report.brackets.g_h):.1e}")
    print(f"{'':16} {dict(report.rows())['verdict']}")
    for note in report.notes:
        print(f"{'':16} note: {note}")

# %% [markdown]
# - *commuting*: $R_a$ exists, and everything in this library applies.
# - *normalising*: the bracket of $\nabla h$ with each $\nabla g_i$ is a combination $\sum_j \Lambda_{ij} \nabla g_j$
#   with constant $\Lambda$. $R_a$ exists too, and decay makes its dual variable leak, $\dot\mu = -\nabla f - \alpha
#   \Lambda^\top \mu$. Depth 3 with weight decay is such a pair; notebook 07 is about them.
# - *g commutes but h does not*: there is an $R$ for $\alpha = 0$, and none that decay changes.
# - *neither*: there is only the flow itself.
#
# Asking for $R_a$ is in the last two cases an error that says why:

# %%
try:
    mj.legendre(product, decay_of_w, w0)
except ValueError as error:
    print(str(error).split("\n")[0])

# %% [markdown]
# **What a verdict is worth.** If the pair commutes, or if $\Lambda$ is one number for all coordinates, the limit
# depends on the total of the decay only. Spend the same total in different times, and see where the flow ends: three
# unknowns, two measurements.

# %%
f = mj.LeastSquares(jnp.array([[1.0, 0.7, 0.4], [0.2, -0.5, 1.0]]), jnp.array([1.0, 0.3]))
t_offs, total = np.geomspace(0.05, 20.0, 9), 0.6


def ends(g, h, w0):  # x at the end for every switch-off time, all with the same total
    def lane(t_off):
        return mj.Problem(g, h, mj.SwitchOff(total / t_off, t_off), f), w0

    return mj.sweep(lane, {"t_off": t_offs}, t1=400.0, rtol=1e-8).x


found = {
    "m w: commuting": ends(product, mj.WeightDecay(), w0),
    "m w, decay of w: not": ends(product, decay_of_w, w0),
    "m w v: normalising": ends(depth3, mj.WeightDecay(), w0_depth3),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
for axis, (title, x) in zip(axes, found.items(), strict=True):
    for i, marker in enumerate("osD"):
        axis.plot(t_offs, x[:, i], marker + "-", label=f"$x_{i}$")
    axis.set(xscale="log", xlabel=r"$t_{\rm off}$ (flow), $\alpha\, t_{\rm off}$ fixed", title=title)
    print(f"{title:22} largest spread of a coordinate: {float(np.max(np.ptp(x.values, axis=0))):.1e}")
axes[0].set_ylabel("x at the end")
axes[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# With decay of one factor, when it acted decides where the flow ends. For $m\,w\,v$ it does not, although the pair
# does not commute: $\Lambda$ is a multiple of the identity, so decay is a change of scale and of clock, and the end
# point is $\operatorname{argmin} R_a$ at the total again. What the total does not set is the time: decay slows the
# clock, and the flow arrives later.
#
# **A new family.** A class takes more lines than `Custom`, and can say more: which weights it takes, and which
# regularizer belongs to it. For a difference $g_u(u) - g_v(v)$ of increasing functions the theory names it: $h =
# g_u(u) + g_v(v)$ (Corollary 3.12). Here with $\operatorname{softplus}(u) = \log(1 + e^u)$, for which the library has
# no formula.


# %%
class SoftplusDifference(mj.AbstractReparameterization):
    """`x = softplus(u) - softplus(v)`, elementwise. Weights: (u, v) of one shape."""

    degree = property(lambda self: None)  # softplus(r u) is no power of r times softplus(u)
    elementwise = property(lambda self: True)

    def __call__(self, w):
        u, v = w
        return jax.nn.softplus(u) - jax.nn.softplus(v)

    def check(self, w):
        if len(w) != 2 or w[0].shape != w[1].shape:
            raise ValueError(f"SoftplusDifference takes (u, v) of one shape, got {[leaf.shape for leaf in w]}")

    def compatible(self, w):
        u, v = w
        return jnp.sum(jax.nn.softplus(u) + jax.nn.softplus(v))


g = SoftplusDifference()
w0_softplus = (jnp.array([1.0, 1.0, 1.0]), jnp.array([1.0, 0.5, 0.8]))
for name, h in {"weight decay": mj.WeightDecay(), "its own": mj.Compatible(g)}.items():
    report = mj.check(g, h, w0_softplus)
    print(f"{name:13} g with h {float(report.brackets.g_h):.1e}   {dict(report.rows())['verdict']}")

# %% [markdown]
# With its own regularizer it commutes, with weight decay it does not. `mj.legendre` therefore recovers $R_a$,
# numerically, and everything else follows: the curves of $R_a$, its mirror map, the flow's identity, the limit.

# %%
R = mj.legendre(g, mj.Compatible(g), w0_softplus)
mirror_map = jax.jit(jax.vmap(R.mirror_map))  # for many points x and strengths a at once

xs = jnp.linspace(-2.0, 2.0, 41)
figure, axis = plt.subplots(figsize=(7, 4))
for a, color in zip((0.0, -1.0, -2.0, -4.0), plt.colormaps["viridis"](np.linspace(0.0, 0.85, 4)), strict=True):
    slope = mirror_map(jnp.stack([xs, xs, xs], axis=1), jnp.full(41, a))
    axis.plot(xs, slope[:, 0], color=color, label=f"a = {a:g}")
axis.set(xlabel="x", ylabel=r"$\nabla R_a(x)$", title=r"Mirror map of softplus(u) - softplus(v), $u_0 = v_0$")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# Spent decay makes the step at 0 steeper, as it does for $m\,w$: this family moves towards L1 too.
#
# **The test that no formula passes by chance.** Follow the flow of the weights, which knows nothing of $R_a$, and
# compare $\nabla R_{a_t}(x_t)$ with $\mu_t = -\int_0^t \nabla f$; then ask whether the end satisfies the condition of
# the predicted limit, $\nabla R_a(x) \in \operatorname{range}(Z^\top)$ (Theorem 3.11).

# %%
problem = mj.Problem(g, mj.Compatible(g), mj.SwitchOff(0.5, 4.0), f)
sol = mj.solve(problem, w0_softplus, t1=120.0, saveat=jnp.linspace(0.0, 120.0, 41), rtol=1e-9)
print(f"largest |grad R_a(x) - mu|: {float(jnp.max(jnp.abs(mirror_map(sol.x, sol.a) - sol.mu))):.1e}")
print(f"distance of grad R_a from range(Z^T), relative: {float(mj.kkt_residual(R, f, sol.x[-1], sol.a[-1])):.1e}")

# %% [markdown]
# **To make it part of the library**, one line in the table `FAMILIES` of `tests/registry.py` is enough to have all
# this, and more, tested: the Jacobian against finite differences, `jit`, `vmap` and `grad`, bad arguments, the flow
# against scipy, the round trip through the mirror map, the three flows, the identity. `CONTRIBUTING.md` has the
# steps:
#
#     "softplus": Family(lambda n: SoftplusDifference(), pair, corollary, True, of_each(softplus, softplus), UNEQUAL),
#
# ## Exercise
#
# $x = u^4 - v^4$ with weight decay: which verdict do you expect? And with $h = u^4 + v^4$? Find out, with `mj.Custom`
# and `mj.CustomRegularizer` and no class of the library. Then add a function of $x$ to $h$: first $\sum x_i$, then
# $\sum x_i^2$. One of them keeps the verdict. Which, and why?
#
# *Hint:* `mj.check(g, h, (u, v))` with positive $u$ and $v$. The gradient of $\phi(g(w))$ is $\sum_i \phi_i'(x)
# \nabla g_i$, and $[X, c\,Y] = c\,[X, Y]$ needs $c$ to be constant.
#
# [Solution](../docs/solutions.md)
