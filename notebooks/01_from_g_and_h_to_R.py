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
# # Which function does a reparameterization with decay prefer to keep small?
#
# Train $x = g(w)$ by gradient flow with a regularizer $h(w)$. If the vector fields $\nabla g_1, \dots, \nabla g_d,
# \nabla h$ commute, the weights are a function of two things only: $w_t = \psi(\mu_t, a_t)$, with the dual variable
# $\mu_t = -\int_0^t \nabla f(x_s)\,ds$ and what decay has spent, $a_t = -\int_0^t \alpha(s)\,ds$. Then there is a
# *time-dependent Legendre function* $R_a$ with
#
# $$\nabla R_{a_t}(x_t) = \mu_t, \qquad \nabla^2 R_a = (J J^\top)^{-1}, \qquad
# \frac{\partial R_a}{\partial a}(x) = -h(\psi(\mu, a)), \qquad J = \frac{\partial g}{\partial w} .$$
#
# The flow is the mirror flow of $R_a$, and $R_a$ is the implicit bias: what the flow prefers to keep small (Jacobs,
# Zhou, Burkholz, [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.6). Decay changes it in three ways:
# its *type* (L2-like or L1-like), the *position* of its minimum, and its *range*.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")

# %% [markdown]
# **Four families**, each with a regularizer that commutes with it, `mj.Compatible(g)`: for $m \odot w$ that is weight
# decay, for a difference $g_u(u) - g_v(v)$ it is $g_u(u) + g_v(v)$ (Corollary 3.12). One coordinate says it all, since
# they act coordinate by coordinate. `mj.legendre` builds $R_a$ from $g$, $h$ and the initial weights.

# %%
one = jnp.ones(1)
pairs = {
    "$x = m\\,w$": (mj.Hadamard(), (one, 0.5 * one), [0.0, -0.25, -0.5, -1.0]),
    "$x = w^2$": (mj.Square(), one, [0.0, -0.25, -0.5, -1.0]),
    "$x = u^4 - v^4$": (mj.PowerDifference(2), (one, 0.8 * one), [0.0, -0.25, -0.5, -1.0]),
    "$x = \\log u - \\log v$": (mj.LogDifference(), (2 * one, 1.5 * one), [0.0, -0.5, -0.8, -1.1]),
}
functions = {name: mj.legendre(g, mj.Compatible(g), w0) for name, (g, w0, _) in pairs.items()}
for name, R in functions.items():
    print(f"{name:24} {type(R).__name__}")

# %% [markdown]
# **The curves.** Each is $R_a(x)$ minus its minimum, and a dot marks the minimum, $\operatorname{argmin} R_a$.


# %%
@jax.jit
def excess(R, xs, a):  # R_a(x) - min R_a at every x, and where the minimum is
    minimizer = R.minimizer(a)
    return jax.vmap(lambda x: R.value(x[None], a))(xs) - R.value(minimizer, a), minimizer[0]


figure, axes = plt.subplots(2, 2, figsize=(10, 7))
for axis, (name, (_, _, spent)) in zip(axes.flat, pairs.items(), strict=True):
    xs = jnp.linspace(0.02 if name == "$x = w^2$" else -2.0, 2.0, 201)
    for a, color in zip(spent, plt.colormaps["viridis"](np.linspace(0.0, 0.85, 4)), strict=True):
        values, minimizer = excess(functions[name], xs, a)
        axis.plot(xs, values, color=color, label=f"a = {a:g}")
        axis.plot(minimizer, 0.0, "o", color=color, clip_on=False)
    axis.set(title=name, xlabel="x", ylabel=r"$R_a(x) - \min R_a$", ylim=(0, None))
    axis.legend(loc="upper center")
plt.show()

# %% [markdown]
# For $m\,w$ the minimum moves to 0 and the bowl becomes a wedge: from L2 to L1. For $w^2$ the minimum moves to 0 too,
# and the stored decay is an added slope, exactly $|a| \sum x$. $u^4 - v^4$ becomes the sharpest wedge of all.
# $\log u - \log v$ goes the other way: its curve gets *flatter*, and its minimum moves away from 0.
#
# **The three effects as numbers.** `mj.effects` gives, for each $a$, the minimum, the local exponent
# $d \log (R_a - \min R_a) / d \log |x - \operatorname{argmin}|$ at a distance of 1 (2 is L2-like, 1 is L1-like) and the
# open interval that $\mu$ lives in.

# %%
for name in ("$x = m\\,w$", "$x = u^4 - v^4$", "$x = \\log u - \\log v$"):
    spent = pairs[name][2]
    effects = mj.effects(functions[name], spent, scale=1.0)
    print(name)
    for i, a in enumerate(spent):
        print(
            f"  a = {a:5.2f}   argmin {float(effects.minimizer[i, 0]):7.4f}   "
            f"exponent {float(effects.local_exponent[i]):.3f}   "
            f"mu in ({float(effects.dual_lower[i, 0]):.2f}, {float(effects.dual_upper[i, 0]):.2f})"
        )

# %% [markdown]
# The interval of $u^4 - v^4$ has ends that decay pushes outwards; that of $\log u - \log v$ shrinks, and ends
# altogether once $|a|$ reaches $\min(u_0, v_0)^2 / 2$. Asking beyond gives a status with a name, never a number:

# %%
log_difference = functions["$x = \\log u - \\log v$"]
for a in (-1.1, -1.2):
    recovered = log_difference.dual(one, a)
    print(a, mj.status_name(recovered.result), recovered.value)

# %% [markdown]
# **Without a closed form.** The classes printed above are formulas. The general path needs none: it flows along
# $\nabla g_i$ and $\nabla h$ and inverts. Both must agree, here for $m\,w$.

# %%
g, w0, _ = pairs["$x = m\\,w$"]
numeric = mj.legendre(g, mj.Compatible(g), w0, method="numeric")
xs = jnp.linspace(-2.0, 2.0, 21)
slopes = {a: jax.vmap(lambda x, a=a: numeric.mirror_map(x[None], a)[0])(xs) for a in (0.0, -0.5)}

figure, axis = plt.subplots(figsize=(7, 4))
fine = jnp.linspace(-2.0, 2.0, 201)
for a, marker in zip(slopes, "os", strict=True):
    exact = jax.vmap(lambda x, a=a: functions["$x = m\\,w$"].mirror_map(x[None], a)[0])
    (line,) = axis.plot(fine, exact(fine), label=f"closed form, a = {a:g}")
    axis.plot(xs, slopes[a], marker, color=line.get_color(), fillstyle="none", label=f"numeric, a = {a:g}")
    print(f"a = {a:5.2f}: largest difference {float(jnp.max(jnp.abs(slopes[a] - exact(xs)))):.1e}")
axis.set(xlabel="x", ylabel=r"mirror map $\nabla R_a(x)$", title="Mirror map of $x = m\\,w$")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# Steeper at 0 means slower to leave it: $\dot x = -(\nabla^2 R_a)^{-1} (\dots)$. With more decay a coordinate that is
# near 0 stays there longer, one that is far away hardly notices.
#
# **Is it true of a flow?** The flow of the weights knows nothing of $R_a$. Follow one with decay that is switched off
# at $t = 2$, with three coordinates that share two measurements, and compare $\nabla R_{a_t}(x_t)$ with
# $\mu_t = -\int_0^t \nabla f$, which `solve` integrates beside the weights.

# %%
Z, y = jnp.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]]), jnp.array([2.0, -1.0])
w0 = (jnp.array([1.0, 0.8, 1.2]), jnp.array([0.5, -0.3, 0.1]))
problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.2, 2.0), mj.LeastSquares(Z, y))
sol = mj.solve(problem, w0, t1=5.0, saveat=jnp.linspace(0.0, 5.0, 101), rtol=1e-9)
R = mj.legendre(problem.g, problem.h, w0)
mirrored = jax.vmap(R.mirror_map)(sol.x, sol.a)
print(f"largest |grad R_a(x) - mu| along the flow: {float(jnp.max(jnp.abs(mirrored - sol.mu))):.1e}")

# %%
figure, axis = plt.subplots(figsize=(9, 4))
for i in range(3):
    axis.plot(sol.ts, mirrored[:, i], color=f"C{i}", label=f"$\\nabla R_{{a_t}}(x_t)$, coordinate {i}")
    axis.plot(sol.ts[::5], sol.mu[::5, i], "o", color=f"C{i}", fillstyle="none", markersize=5)
axis.plot([], [], "o", color="0.3", fillstyle="none", markersize=5, label=r"$\mu_t = -\int \nabla f$")
axis.axvline(2.0, color="0.6", linewidth=1, linestyle=":")
axis.set(xlabel="time t (flow); decay is switched off at the dotted line", ylabel=r"dual variable $\mu$")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# The lines pass through the marks, before and after the switch-off. This identity is the cheapest test of any formula
# for $R_a$, and the tests of this library hold every family to it.
#
# ## Exercise
#
# The equation for $\partial R_a / \partial a$ above was not used. Check it for $m\,w$ at $x = 0.7$ and $a = -0.3$:
# `jax.grad` of `R.value` in $a$ against $-h$ at the weights $\psi(\mu, a)$. What does its sign say?
#
# *Hint:* `R.weights(mu, a)` is $\psi$, with $\mu$ from `R.mirror_map`. Spending decay makes $a$ fall; does $R_a$ rise
# then, or fall? Where $h \ge 0$ the sign is the same everywhere. The paper calls that *contracting*, and Theorem 3.10,
# that the flow converges after the switch-off, needs it.
#
# [Solution](../docs/solutions.md)
