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
# # Can a schedule of weight decay be learned by gradient, and is it better than one made by hand?
#
# Training to time $t_1$ with decay $\alpha(t)$ ends at some $x_{t_1}[\alpha]$. Its error on data that were not trained
# on,
#
# $$L(\alpha) = \frac{1}{n_{\rm val}} \left| Z_{\rm val}\, x_{t_1}[\alpha] - y_{\rm val} \right|^2 ,$$
#
# is a differentiable function of every number in $\alpha$, switch-off time included, because `mj.solve` is. So the
# schedule can be improved by gradient descent through the whole training run. For $t \to \infty$ only the total
# $\int \alpha$ matters for an exact fit (Jacobs, Zhou, Burkholz,
# [arXiv 2504.12883](https://arxiv.org/abs/2504.12883), Theorem 3.11), and there is one number to learn; at a finite
# $t_1$ and with noise, the shape may matter. Whether it does is measured here.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import mirrorjax as mj

jax.config.update("jax_enable_x64", True)  # the theory wants float64
plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# **The task.** Sixty unknowns, of which five are $\pm 1$; thirty noisy measurements to train on, 150 to validate, 750
# to test. One draw says little, so there are several, each a task of its own.

# %%
n, d, noise, t1 = 30, 60, 0.4, 30.0
draws, steps = (2, 2) if short else (6, 25)


def data(seed):
    of_x, of_Z, of_noise = jax.random.split(jax.random.key(seed), 3)
    x_true = jnp.zeros(d).at[:5].set(jax.random.rademacher(of_x, (5,), float))
    Z = jax.random.normal(of_Z, (31 * n, d))
    return Z, Z @ x_true + noise * jax.random.normal(of_noise, (31 * n,))


def problem(schedule, Z, y):
    f = mj.LeastSquares(Z[:n], y[:n])
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), schedule, f), (jnp.ones(d), jnp.zeros(d))


def errors(x, Z, y):  # mean squared error on validation and on test data
    squares = (jnp.einsum("...nd,...d->...n", Z, x) - y) ** 2
    return jnp.mean(squares[..., n : 6 * n], axis=-1), jnp.mean(squares[..., 6 * n :], axis=-1)


Z, y = jax.vmap(data)(jnp.arange(draws))

# %% [markdown]
# **By hand.** Three shapes, six totals and three switch-off times. The best on validation data is kept, for each draw:
# a fair opponent is chosen as carefully as the learned schedule will be. A `mj.Sum` with all strengths but one at zero
# makes one program of the three shapes.

# %%
SHAPES = ("switch-off", "linear", "cosine")


def by_hand(shape, total, t_off):
    constant, linear, cosine = jax.nn.one_hot(shape, 3) * total / t_off * jnp.array([1.0, 2.0, 2.0])
    return mj.Sum(mj.SwitchOff(constant, t_off), mj.LinearDecay(linear, t_off), mj.CosineDecay(cosine, t_off))


totals, t_offs = ([2.0, 4.0], [10.0]) if short else ([1.0, 2.0, 3.0, 4.0, 6.0, 8.0], [3.0, 10.0, 20.0])
shape, total, t_off = (each.ravel() for each in np.meshgrid(np.arange(3), totals, t_offs))
grid = {"schedule": mj.Zip(shape=shape, total=total, t_off=t_off), "draw": np.arange(draws)}
tried = mj.sweep(lambda shape, total, t_off, draw: problem(by_hand(shape, total, t_off), Z[draw], y[draw]), grid, t1=t1)
validation, test = map(np.asarray, errors(tried.x.values, Z, y))
tried = tried.assign(validation=(tried.status.dims, validation), test=(tried.status.dims, test))
best = tried.isel(schedule=tried.validation.argmin("schedule"))
for draw in range(draws):
    chosen = best.isel(draw=draw)
    print(
        f"draw {draw}: {SHAPES[int(chosen['shape'])]:10} total {float(chosen.total):g}, t_off {float(chosen.t_off):2g}"
        f"   validation {float(chosen.validation):.3f}   test {float(chosen.test):.3f}"
    )

# %% [markdown]
# **By gradient.** Four pieces of constant strength up to a switch-off time, all five numbers as logarithms, so that
# they stay positive. The start is the total and the switch-off time of the best by hand, spread evenly.


# %%
def schedule(parameters):
    t_off, strengths = jnp.exp(parameters["log_t_off"]), jnp.exp(parameters["log_strengths"])
    return mj.Piecewise(t_off * jnp.array([0.25, 0.5, 0.75, 1.0]), jnp.append(strengths, 0.0))


def objective(parameters, Z, y):
    made, w0 = problem(schedule(parameters), Z, y)
    return errors(mj.solve(made, w0, t1=t1, max_steps=1024).x[-1], Z, y)


@jax.jit
def differentiated(parameters, Z, y):  # of each draw: (validation, test) and the gradient of the first; one by one
    return jax.lax.map(lambda one: jax.value_and_grad(objective, has_aux=True)(*one), (parameters, Z, y))


t_off, total = jnp.asarray(best.t_off.values), jnp.asarray(best.total.values)
start = {"log_t_off": jnp.log(t_off), "log_strengths": jnp.log(jnp.tile(total / t_off, (4, 1)).T)}
_, gradient = differentiated(start, Z, y)

# %% [markdown]
# Never trust a gradient through a solver unseen. The derivative in the logarithm of the switch-off time against central
# differences:

# %%
step = 1e-4
shifted = [differentiated(start | {"log_t_off": start["log_t_off"] + s}, Z, y)[0][0] for s in (step, -step)]
for draw in range(min(draws, 3)):
    difference = (shifted[0][draw] - shifted[1][draw]) / (2 * step)
    print(f"draw {draw}: gradient {float(gradient['log_t_off'][draw]):9.6f}   difference {float(difference):9.6f}")

# %% [markdown]
# **The loop** is any optax loop. What counts in the end is the step that was best on *validation* data; test data are
# only looked at.

# %%
optimizer = optax.adam(0.03)
parameters, state = start, optimizer.init(start)
path, measured = [], []
for _ in range(steps + 1):
    (validation, test), gradient = differentiated(parameters, Z, y)
    path.append(parameters)
    measured.append((validation, test))
    updates, state = optimizer.update(gradient, state)
    parameters = optax.apply_updates(parameters, updates)

validation, test = (np.stack(each) for each in zip(*measured, strict=True))  # (step, draw)
chosen = np.argmin(validation, axis=0)
learned_validation, learned_test = (each[chosen, np.arange(draws)] for each in (validation, test))
for name, learned, hand in (
    ("validation", learned_validation, best.validation.values),
    ("test", learned_test, best.test.values),
):
    gain = learned - hand
    print(
        f"{name:10} by hand {hand.mean():.4f}   learned {learned.mean():.4f}"
        f"   difference {gain.mean():+.4f} +- {gain.std(ddof=1) / draws**0.5:.4f} (standard error over {draws} draws)"
    )
print(f"noise: {noise**2:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
left.plot(validation.mean(axis=1), label="learned, validation")
left.plot(test.mean(axis=1), "--", label="learned, test")
left.axhline(best.validation.values.mean(), color="C0", linewidth=1)
left.axhline(best.test.values.mean(), color="C1", linewidth=1, linestyle="--")
left.set(xlabel="optimizer step", ylabel="error, mean over draws", title="Thin lines: best by hand")
left.legend(loc="center right")
ts = jnp.linspace(0.0, t1, 601)
for draw in range(min(draws, 3)):
    mine = schedule(jax.tree.map(lambda leaf, draw=draw: leaf[draw], path[chosen[draw]]))
    hand = by_hand(*(jnp.asarray(best[name].values[draw]) for name in ("shape", "total", "t_off")))
    right.plot(ts, jax.vmap(mine)(ts), color=f"C{draw + 2}", label=f"draw {draw}")
    right.plot(ts, jax.vmap(hand)(ts), "--", color=f"C{draw + 2}", linewidth=1.2)
right.set(xlabel="time t (flow)", ylabel=r"strength $\alpha(t)$", title="Learned (solid) and by hand (dashed)")
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# What was gained stands in the table above, with its standard error, and it is modest: the gain on validation data can
# only be one, since the schedule was chosen there; the gain on test data is what counts, and is small against what
# remains above the noise. The first thing to get right is the total, which a short grid by hand finds; the shape is a
# correction. The gradient's own merit is that it needs no grid: five numbers here, and as easily fifty.
#
# ## Exercise
#
# How good must the start be? Start the loop from the total 1, spread over $t < 3$, in every draw. Does it find its way
# to the errors above, and which of the five numbers moves most?
#
# *Hint:* only `start` changes; give it a learning rate of 0.1 and 60 steps, and print the total,
# `schedule(parameters).integral(t1)`, beside the errors.
#
# [Solution](../docs/solutions.md)
