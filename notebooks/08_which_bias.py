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
# # Which bias did my training run accumulate?
#
# The flow of $x = m \odot w$ with decay $\alpha(t)(|m|^2 + |w|^2)$ ends, after a switch-off, at the minimum of $R_a$
# among the solutions, with one $a = -\int \alpha$ for all coordinates. Real training takes finite steps, sees noise
# and uses Adam. With $u = m + w$, $v = m - w$, any weights at all are those of the flow at exactly one $\mu_i$ and one
# $a_i$ *a coordinate*,
#
# $$4 a_i = \log \left| \frac{u_i v_i}{u_{0,i} v_{0,i}} \right|, \qquad
# 2 \mu_i = \log \left| \frac{u_i}{u_{0,i}} \right| - \log \left| \frac{v_i}{v_{0,i}} \right|$$
#
# so `mj.read_bias` reads off the bias of a finished run, from its weights before and after, and
# `mj.optim.track_bias` says which part of it came from decay, from finite steps and from noise.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import mirrorjax as mj
from mirrorjax import nn, optim

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **The data and the training loop.** A hundred unknowns, forty measurements, five of the unknowns are 1. The loop is
# a plain optax loop; `track_bias` wraps the optimizer and its decay, and is given the mean gradient beside the noisy
# one, so that it can tell noise from steps. (Without the mean gradient, leave `noise=True` out: steps and noise are
# then one part.) Decay is switched off after a quarter of the steps; $a = -1$ was spent by then.

# %%
n, d = 40, 100
Z = jax.random.normal(jax.random.key(0), (n, d))
x_true = jnp.zeros(d).at[:5].set(1.0)
f = mj.LeastSquares(Z, Z @ x_true)
w0 = (jnp.ones(d), jnp.zeros(d))
a_flow = -1.0


def slope(x, rows, noise):
    """The gradient of f in x on some rows, with noise on their labels."""
    return Z[rows].T @ (Z[rows] @ x - f.y[rows] - noise) / rows.size


def train(optimizer, steps, batch=n, label_noise=0.0):
    """The weights at the end, and the parts of the bias."""

    def step(carry, key):
        (m, w), state, count = carry
        first, second = jax.random.split(key)
        rows = jnp.arange(n) if batch == n else jax.random.randint(first, (batch,), 0, n)
        noise = jnp.where(count < steps // 4, label_noise, 0.0) * jax.random.normal(second, (batch,))
        drawn, mean = slope(m * w, rows, noise), f.gradient(m * w)
        updates, state = optimizer.update((drawn * w, drawn * m), state, (m, w), mean_gradient=(mean * w, mean * m))
        return (optax.apply_updates((m, w), updates), state, count + 1), None

    keys = jax.random.split(jax.random.key(1), steps)
    begin = (w0, optimizer.init(w0), 0)
    (weights, state, _), _ = jax.jit(lambda keys: jax.lax.scan(step, begin, keys)[0:2])(keys)
    return weights, optim.accumulated_bias(state)


def decay(eta, steps):
    """A strength that spends a = -1 in the first quarter of the steps."""
    t_off = eta * (steps // 4)
    return mj.SwitchOff(-a_flow / t_off, t_off)


steps = 2000 if short else 8000


def descent(eta):
    """Gradient descent with coupled decay: the optimizer sees its gradient."""
    return optim.track_bias(optax.sgd(eta), decay(eta, steps), step_size=eta, coupled=True, noise=True)


def adamw(eta, steps):
    """Adam with decoupled decay, and a learning rate that falls to 0, half as large in the mean."""
    rate = optax.cosine_decay_schedule(eta, steps)
    return optim.track_bias(optax.adam(rate), decay(eta / 2, steps), step_size=rate, coupled=False, noise=True)


runs = {
    "gradient descent": train(descent(0.2), steps),
    "SGD": train(descent(0.05), steps, batch=4),
    "SGD, noisy labels": train(descent(0.05), steps, batch=4, label_noise=1.0),
    "AdamW": train(adamw(0.01, 4000), 4000, batch=4),
}

# %% [markdown]
# **Reading the bias** needs the weights alone. `print` shows the spread of $a$ and how many coordinates have which
# status: where a step was so long that $u$ or $v$ changed sign, no $(\mu, a)$ leads there, and the status says so.

# %%
g, h = mj.Hadamard(), mj.WeightDecay()
biases = {name: mj.read_bias(g, h, w0, weights) for name, (weights, _) in runs.items()}
for name, bias in biases.items():
    print(f"{name:18} {bias}")

# %% [markdown]
# The formula is exact: flowing by $\mu_i$ and $a_i$ gives the weights back, whatever the optimizer was.

# %%
for name, (weights, parts) in runs.items():
    bias = biases[name]
    u, v = jnp.exp(bias.mu + 2 * bias.a), jnp.exp(-bias.mu + 2 * bias.a)  # times u0 = v0 = 1
    back = (u + v) / 2, (u - v) / 2
    gap = max(float(jnp.max(jnp.abs(one - other))) for one, other in zip(back, weights, strict=True))
    total = float(jnp.max(jnp.abs(parts.total - bias.a)))
    print(f"{name:18} weights off by {gap:.0e}   decay + steps + noise - a_i: {total:.0e}")

# %%
figure, axes = plt.subplots(1, len(runs), figsize=(13, 3.6), sharey=True)
for axis, (name, bias) in zip(axes, biases.items(), strict=True):
    a = np.asarray(bias.a)
    edges = np.linspace(np.nanmin(a), max(np.nanmax(a), a_flow), 31)
    axis.hist([a[:5], a[5:]], bins=edges, stacked=True, color=["C1", "0.7"], label=["where x* = 1", "others"])
    axis.axvline(a_flow, color="C0", linestyle="--", label="the flow")
    axis.set(title=name, xlabel="$a_i$")
    axis.locator_params(axis="x", nbins=4)
axes[0].set_ylabel("coordinates")
axes[0].legend()
plt.show()

# %% [markdown]
# **Where it came from.** Decay does the same to every coordinate, $\frac12 \log |1 - 2 \eta \alpha|$ a step. Steps of
# gradient descent multiply $uv$ by $1 - (\eta g)^2$, so they lower $a$ a little; noise does the same on average, and
# noise on the labels, which does not fade as the data are fitted, lowers it much more. Adam is another thing: it moves
# $m$ and $w$ by the same length, so that one of $u$ and $v$ grows and the other stays. That *raises* $a$.

# %%
figure, axis = plt.subplots(figsize=(8, 4))
for place, (_, parts) in enumerate(runs.values()):
    for shift, (part, color) in enumerate(zip(("decay", "step", "noise"), ("C0", "C1", "0.6"), strict=True)):
        values = np.asarray(getattr(parts, part))
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        label = part if place == 0 else None
        at = place + 0.25 * (shift - 1)
        axis.bar(at, middle, 0.22, color=color, label=label, yerr=[[middle - low], [high - middle]], capsize=3)
axis.axhline(0, color="k", linewidth=0.8)
axis.set_xticks(range(len(runs)), runs)
axis.set_yscale("symlog", linthresh=0.01)
axis.set(ylabel="part of $a_i$", title="Median over coordinates, with the range of 90 %")
axis.legend()
plt.show()

# %% [markdown]
# **Did the run minimise its own $R$?** With an $a_i$ a coordinate, $R = \sum_i R_{a_i}$ is as good a Legendre function
# as before, and the end of a run is its minimum among the solutions exactly if $\mu$ lies in the range of $Z^\top$.
# Gradients of $f$ in $x$ lie there, and gradient descent adds them up, up to third order in the step. Adam scales each
# coordinate by itself, and leaves that space.


# %%
def outside(mu):
    """The distance of mu from range(Z^T), relative to its length."""
    mu = np.asarray(mu)
    return np.linalg.norm(mu - Z.T @ np.linalg.lstsq(Z.T, mu)[0]) / np.linalg.norm(mu)


flow = mj.predict_limit(mj.legendre(g, h, w0), f, a_flow).x
for name, (weights, _) in runs.items():
    x = g(weights)
    fit = float(jnp.linalg.norm(Z @ x - f.y) / jnp.linalg.norm(f.y))
    far = float(jnp.linalg.norm(x - flow) / jnp.linalg.norm(x))
    print(
        f"{name:18} KKT residual {outside(biases[name].mu):.0e}   |Zx - y| / |y| = {fit:.0e}   to the flow's {far:.2f}"
    )

# %% [markdown]
# **In a network**, `nn.reparameterize` writes tensors as $m \odot w$, and `nn.read_bias` reads every one of them. Keep
# the weights that it returns first. Here is a small network of 10 inputs, of which the labels use two, trained by
# AdamW without any decay: every $a$ below is what the optimizer did by itself.

# %%
inputs = jax.random.normal(jax.random.key(2), (200, 10))
labels = jnp.tanh(2 * inputs[:, 0]) * inputs[:, 1]
first, second = jax.random.split(jax.random.key(3))
params = {
    "hidden": {"kernel": jax.random.normal(first, (10, 16)) / 10**0.5, "bias": jnp.zeros(16)},
    "out": {"kernel": jax.random.normal(second, (16, 1)) / 4},
}
split, weights0 = nn.reparameterize(params, {"*/kernel": nn.Factored(mj.Hadamard(), balance=0.1)})


def loss(weights):
    layers = split.merge(weights)
    hidden = jnp.tanh(inputs @ layers["hidden"]["kernel"] + layers["hidden"]["bias"])
    return jnp.mean((hidden @ layers["out"]["kernel"][:, 0] - labels) ** 2)


def fitted(optimizer, steps):
    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (weights0, optimizer.init(weights0)), length=steps)[0][0])()


for rate in (0.03, 0.003):
    weights = fitted(optax.adam(rate), int((300 if short else 30) / rate) // (10 if short else 1))
    print(f"Adam, learning rate {rate}: loss {float(loss(weights)):.1e}")
    for name, bias in nn.read_bias(split, weights0, weights).items():
        print(f"  {name:14} {bias}")

# %% [markdown]
# ## Exercise
#
# The part of noise grows with the step size and with the inverse of the batch. Find the standard deviation of the
# noise on the labels for which it lowers $a$ by as much as decay does, in the median over coordinates, and check that
# gradient descent with *twice the decay* and no noise ends near the same $x$.
#
# *Hint:* the noise in $g_i$ has the variance $\sigma^2 |Z_{\cdot i}|^2 / (n b)$, and a step lowers $4 a_i$ by $\eta^2
# g_i^2$ to leading order: solve for $\sigma$, then correct it with one run. `mj.read_bias` on both runs shows that the
# spread of $a_i$ is the difference that is left.
#
# [Solution](../docs/solutions.md)
