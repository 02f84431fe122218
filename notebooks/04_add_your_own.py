# ---
# jupyter:
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
# (Jacobs, Zhou, Burkholz, [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.6). Flowing along one and then
# the other then leads to the same weights in either order, and the order in which data and decay acted is forgotten.
# `mj.check` measures the brackets at sampled weights, for any $g$ and $h$ that JAX can differentiate.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("talk.mplstyle")

# %% [markdown]
# **One that passes.** Any function of a pytree of arrays is a reparameterization, by `mj.Custom`.

# %%
w0 = {"m": jnp.array([1.0, 0.8, 1.2]), "w": jnp.array([0.3, 0.5, -0.2])}
product = mj.Custom(lambda w: w["m"] * w["w"], homogeneity=2)
print(mj.check(product, mj.WeightDecay(), w0))

# %% [markdown]
# From the top: the *verdict*; whether $J$ has full rank, and how well; the largest bracket among the $\nabla g_i$ and
# with $\nabla h$, each divided by its size, so that 0 is commuting and 1 is as far from it as can be; whether the flow
# map really has the Hessian $J J^\top$; whether $h \ge 0$, which Theorem 3.10 asks for. What was looked at, and the
# tolerance, stand at the end: it is a measurement at points near `w0`, not a proof.
#
# **The two ways to fail.** One factor more, $x = m\,w\,v$; and products of neighbours, $x_i = w_i w_{i+1}$, whose
# coordinates share weights.

# %%
depth3 = mj.Hadamard(3)
w0_depth3 = (w0["m"], w0["w"], jnp.array([1.1, 0.9, 0.7]))
neighbours = mj.Custom(lambda w: w[:-1] * w[1:], homogeneity=2)
reports = {
    "x = m w": mj.check(product, mj.WeightDecay(), w0),
    "x = m w v": mj.check(depth3, mj.WeightDecay(), w0_depth3),
    "x_i = w_i w_(i+1)": mj.check(neighbours, mj.WeightDecay(), w0["m"]),
}
for name, report in reports.items():
    print(f"{name:18} g with g {float(report.brackets.g_g):.1e}   g with h {float(report.brackets.g_h):.1e}")
    print(f"{'':18} {dict(report.rows())['verdict']}")
    for note in report.notes:
        print(f"{'':18} note: {note}")

# %% [markdown]
# - *commuting*: $R_a$ exists, and everything in this library applies.
# - *g commutes but h does not*: there is an $R$ for $\alpha = 0$. With decay the bias depends on the whole history.
# - *neither*: there is only the flow itself.
#
# Asking for $R_a$ is then an error that says why:

# %%
try:
    mj.legendre(depth3, mj.WeightDecay(), w0_depth3)
except ValueError as error:
    print(str(error).split("\n")[0])

# %% [markdown]
# **What a verdict is worth.** If history is forgotten, the limit depends on the total of the decay only. Spend the same
# total in different times, and see where the flow ends: three unknowns, one measurement.

# %%
f = mj.LeastSquares(jnp.array([[1.0, 0.7, 0.4]]), jnp.array([1.0]))
t_offs, total = np.geomspace(0.05, 20.0, 9), 0.6


def ends(g, w0):  # x at the end for every switch-off time, all with the same total
    def lane(t_off):
        return mj.Problem(g, mj.WeightDecay(), mj.SwitchOff(total / t_off, t_off), f), w0

    return mj.sweep(lane, {"t_off": t_offs}, t1=200.0, rtol=1e-8).x


figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, (title, x) in zip(
    axes,
    {"x = m w: commuting": ends(product, w0), "x = m w v: h does not commute": ends(depth3, w0_depth3)}.items(),
    strict=True,
):
    for i, marker in enumerate("osD"):
        axis.plot(t_offs, x[:, i], marker + "-", label=f"$x_{i}$")
    axis.set(xscale="log", xlabel=r"$t_{\rm off}$ (flow), $\alpha\, t_{\rm off}$ fixed", title=title)
    print(f"{title:30} largest spread of a coordinate: {float(np.max(np.ptp(x.values, axis=0))):.1e}")
axes[0].set_ylabel("x at the end")
axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# **A new family.** A class takes more lines than `Custom`, and can say more: which weights it takes, and which
# regularizer belongs to it. For a difference $g_u(u) - g_v(v)$ of increasing functions the theory names it:
# $h = g_u(u) + g_v(v)$ (Corollary 3.12). Here with $\operatorname{softplus}(u) = \log(1 + e^u)$, for which the library
# has no formula.


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


@jax.jit
def slope_and_minimum(xs, a):  # grad R_a of the first coordinate, and argmin R_a
    return jax.vmap(lambda x: R.mirror_map(jnp.full(3, x), a)[0])(xs), R.minimizer(a)[0]


xs = jnp.linspace(-2.0, 2.0, 41)
figure, axis = plt.subplots(figsize=(7, 4))
for a, color in zip((0.0, -1.0, -2.0, -4.0), plt.colormaps["viridis"](np.linspace(0.0, 0.85, 4)), strict=True):
    slope, minimum = slope_and_minimum(xs, a)
    axis.plot(xs, slope, color=color, label=f"a = {a:g}")
axis.set(xlabel="x", ylabel=r"mirror map $\nabla R_a(x)$", title=r"$x = {\rm softplus}(u) - {\rm softplus}(v)$, $u_0 = v_0$")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# Spent decay makes the step at 0 steeper, as it does for $m\,w$: this family moves towards L1 too.
#
# **The test that no formula can pass by chance.** Follow the flow of the weights, which knows nothing of $R_a$, and
# compare $\nabla R_{a_t}(x_t)$ with $\mu_t = -\int_0^t \nabla f$; and the predicted limit with the end.

# %%
problem = mj.Problem(g, mj.Compatible(g), mj.SwitchOff(0.5, 4.0), f)
sol = mj.solve(problem, w0_softplus, t1=60.0, saveat=jnp.array([1.0, 4.0, 10.0, 60.0]), rtol=1e-9)
mirrored = jax.vmap(R.mirror_map)(sol.x, sol.a)
limit = mj.predict_limit(R, f, sol.a[-1])
print(f"largest |grad R_a(x) - mu|: {float(jnp.max(jnp.abs(mirrored - sol.mu))):.1e}")
print(f"|predicted limit - flow|:   {float(jnp.linalg.norm(limit.x - sol.x[-1])):.1e}, {mj.status_name(limit.result)}")
