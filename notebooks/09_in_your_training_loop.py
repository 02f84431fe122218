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
# # Weight decay that switches off, in your training loop: how, and when?
#
# Weight decay on a product $x = m \odot w$ (or $AB$, or $W_K^\top W_Q$) changes which solution training prefers, and
# the change stays when decay is switched off. What decay costs, the pull on the loss, ends. `mj.optim` has this as
# optax transformations, for any pytree and any loop. This notebook shows them in a plain loop and in Flax NNX, finds
# the switch-off by held-out data, and goes through what real loops have: logs, masks, learning-rate schedules,
# accumulated gradients, bf16.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import mirrorjax as mj
from mirrorjax import nn, optim

plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# ## One line
#
# `switch_off_sgd` and `switch_off_adamw` are `optax.sgd` and `optax.adamw` with one more argument, the number of steps
# with decay. `weight_decay` is optax's and PyTorch's factor of the weights; the theory writes $\alpha |w|^2$, whose
# gradient is $2 \alpha w$, so **alpha is half of `weight_decay`**. Schedules of mirrorjax count flow time, the sum of
# the learning rates. These two are the same optimizer:

# %%
rate, off_at = 2e-2, 500
by_steps = optim.switch_off_sgd(rate, weight_decay=0.6, off_at=off_at)
by_time = optim.coupled_weight_decay(optax.sgd(rate), mj.SwitchOff(0.3, t_off=rate * off_at), step_size=rate)

params = {"kernel": jnp.ones(3)}
for optimizer in (by_steps, by_time):
    state = optimizer.init(params)
    updates, state = optimizer.update({"kernel": jnp.zeros(3)}, state, params)
    print(f"first update {updates['kernel'][0]:.4f}, alpha now {optim.current_strength(state):.2f}")

# %% [markdown]
# ## When to switch off: by held-out data, at the end
#
# Two hundred inputs, of which five matter, and eighty noisy examples; twenty more are held out. Strengths and
# switch-off steps are numbers in the optimizer's state, so a whole table of them is one compiled program: build the
# optimizer inside the mapped function.

# %%
d, n = 200, 80
Z = jax.random.normal(jax.random.key(0), (n + 20, d))
x_true = jnp.zeros(d).at[:5].set(1.0)
y = Z @ x_true + 0.2 * jax.random.normal(jax.random.key(1), (n + 20,))
start = {"m": jnp.ones(d), "w": jnp.zeros(d)}
steps = 4_000 if short else 20_000


def loss(params, rows):
    return jnp.mean((Z[rows] @ (params["m"] * params["w"]) - y[rows]) ** 2)


def train(optimizer, key):
    """Minibatches of 20; returns the error on held-out examples ten times, and that of x in the end."""

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (20,), 0, n)
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    def part(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, (loss(carry[0], jnp.arange(n, n + 20)), optim.current_strength(carry[1]))

    keys = jax.random.split(key, (20, steps // 20))
    (params, _), logged = jax.lax.scan(part, (start, optimizer.init(start)), keys)
    return *logged, jnp.linalg.norm(params["m"] * params["w"] - x_true)


strengths, shares = jnp.array([0.02, 0.06, 0.2]), jnp.array([0.0, 0.05, 0.15, 0.35, 0.7, 1.0])


@jax.jit
def table(key):
    def lane(strength, share):
        return train(optim.switch_off_sgd(1e-2, weight_decay=strength, off_at=share * steps), key)

    return jax.vmap(jax.vmap(lane, (None, 0)), (0, None))(strengths, shares)


held_out, alphas, distances = table(jax.random.key(2))
print("held-out error at the end      distance from x* (nobody sees this one)")
print("off after  " + "".join(f"{share:>7.0%}" for share in shares))
for row, strength in enumerate(strengths):
    errors = "".join(f"{error:7.3f}" for error in held_out[row, :, -1])
    print(f"wd = {strength:4.2f}  {errors}   " + "".join(f"{far:7.2f}" for far in distances[row]))
best = np.unravel_index(np.argmin(held_out[..., -1]), held_out.shape[:2])
print(f"\nchosen by held-out error: weight_decay {strengths[best[0]]:.2f}, off after {shares[best[1]]:.0%}")

# %% [markdown]
# **The rule.** Compare runs of *equal length* on held-out data *at the end*. While decay is on, the loss is raised by
# it; a comparison at the switch-off would favour weak decay. The curves show both: the chosen run is worse than others
# while its decay is on, and best after it.

# %%
figure, (errors, strength_axis) = plt.subplots(1, 2, figsize=(12, 3.8))
at = (1 + np.arange(held_out.shape[-1])) * (steps // held_out.shape[-1])
for column, share in enumerate(shares):
    label = f"off after {share:.0%}" if 0 < share < 1 else ("no decay" if share == 0 else "always on")
    errors.plot(at, held_out[best[0], column], label=label)
    strength_axis.plot(at, alphas[best[0], column], drawstyle="steps-post")
errors.set(xlabel="steps", ylabel="held-out error", yscale="log", title=f"weight_decay = {strengths[best[0]]:.2f}")
strength_axis.set(xlabel="steps", ylabel=r"$\alpha$", title="optim.current_strength(state)")
errors.legend()
plt.show()

# %% [markdown]
# `optim.current_strength(state)` reads the strength of the last update from the state of any optimizer with a decay of
# this package inside: log it beside the loss. `mj.nn.train` runs such a table with a store and checkpoints, and warns
# of lanes whose switch-off lay behind the last step.

# %% [markdown]
# ## In Flax NNX
#
# The optimizer goes into `nnx.Optimizer` as any other. Implicit bias changes where tensors are products;
# `reparameterize` makes products of chosen kernels, and its `split.factored` is the mask for decay: biases do not
# decay. Below a perceptron for 500 digits, of which a third have labels drawn at random, and 100 more held out.

# %%
raw = load_digits()
order = np.random.default_rng(0).permutation(len(raw.target))
X, labels = jnp.asarray(raw.data[order] / 16, jnp.float32), jnp.asarray(raw.target[order])
noisy = labels[:500].at[:160].set(jax.random.randint(jax.random.key(3), (160,), 0, 10))


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


graph, params = nnx.split(Perceptron(nnx.Rngs(0)))
split, weights = nn.reparameterize(params, {"*/kernel": nn.Factored(mj.Hadamard(), balance=0.1)})
print(split)


# %%
def logits(weights, x):
    return nnx.merge(graph, split.merge(weights))(x)


def cross_entropy(weights, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(weights, x), y).mean()


def accuracy(weights, rows):
    return jnp.mean(jnp.argmax(logits(weights, X[rows]), axis=-1) == labels[rows])


epochs = 60 if short else 400


@jax.jit
def fitted(strength, share):
    optimizer = optim.switch_off_adamw(3e-3, weight_decay=strength, off_at=share * 10 * epochs, mask=split.factored)

    def step(carry, key):
        weights, state = carry
        rows = jax.random.randint(key, (50,), 0, 500)
        gradient = jax.grad(cross_entropy)(weights, X[rows], noisy[rows])
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    keys = jax.random.split(jax.random.key(4), 10 * epochs)
    (end, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), keys)
    x = jnp.concatenate([jnp.abs(m * w).ravel() for m, w in split.factors(end).values()])
    return accuracy(end, slice(500, 600)), accuracy(end, slice(600, None)), jnp.sum(x) / jnp.linalg.norm(x)


print("weight_decay  off after  held out   test  |x|_1 / |x|_2")
for strength, share in ((0.0, 1.0), (0.1, 1 / 3), (0.1, 1.0), (1.0, 1 / 3), (1.0, 1.0)):
    kept, test, ratio = fitted(strength, share)
    print(f"{strength:12.1f} {share:10.0%} {kept:9.3f} {test:6.3f} {ratio:14.0f}")

# %% [markdown]
# **When not to switch off.** Here the same rule, held-out examples at the end, says: never. The network can fit the
# random labels, and decay that stays on is what keeps it from that; as soon as decay is off it learns them by heart.
# Switching off is for data that one wants to fit, where decay's pull on the loss is a cost. The sparsity that was
# stored stays in both cases: the last column is far below that of no decay.
#
# In an imperative loop nothing changes: `optimizer = nnx.Optimizer(model, optim.switch_off_adamw(..), wrt=nnx.Param)`
# and `optimizer.update(model, gradients)`. Attention and LoRA adapters are products already; give the mask that names
# them and leave `reparameterize` out.
#
# ## Masks, schedules, accumulated gradients, bf16

# %%
layers = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
zero = jax.tree.map(jnp.zeros_like, layers)
for mask in (None, "*/kernel", optim.matrices):
    decay = optim.scheduled_weight_decay(0.05, mask=mask)
    updates, _ = decay.update(zero, decay.init(layers), layers)
    named = zip(("bias", "kernel", "scale"), jax.tree.leaves(updates), strict=True)
    moved = [name for name, leaf in named if jnp.any(leaf)]
    print(f"mask = {getattr(mask, '__name__', mask)!s:9} decays {', '.join(moved)}")

# %% [markdown]
# **A learning-rate schedule** is also the clock of a schedule in flow time: give it as `step_size`, and $t$ is the area
# under it. Under a rate that falls, $t_{\rm off}$ is reached later than at a constant one. `off_at` counts steps
# whatever the rate is.

# %%
falling = optax.cosine_decay_schedule(1e-2, 1000)
for name, step_size in (("constant", 1e-2), ("cosine", falling)):
    decay = optim.scheduled_weight_decay(mj.SwitchOff(0.3, 4.0), step_size=step_size)
    state, count = decay.init(params := {"w": jnp.ones(1)}), 0
    update = jax.jit(decay.update)
    while state.pending and count < 1000:
        _, state = update({"w": jnp.zeros(1)}, state, params)
        count += 1
    print(f"{name:8}: t = 4 is reached after {count} steps")

# %% [markdown]
# **`optax.MultiSteps`** calls the optimizer once for $k$ minibatches: `off_at` counts updates, not minibatches.

# %%
optimizer = optax.MultiSteps(optim.switch_off_sgd(1e-2, weight_decay=0.1, off_at=3), every_k_schedule=4)
state, seen = optimizer.init(params), []
update = jax.jit(optimizer.update)
for _ in range(20):
    updates, state = update({"w": jnp.zeros(1)}, state, params)
    seen.append(bool(updates["w"][0] != 0))
print("minibatches after which the weight moved:", [count + 1 for count, moved in enumerate(seen) if moved])

# %% [markdown]
# **bf16.** A bf16 number has 8 bits: a step of relative size $\eta \cdot$`weight_decay` below $2^{-9} = 0.002$ is
# rounded away, and decay does nothing at all. Keep the weights in float32 and cast them in the forward pass.

# %%
decay = optim.switch_off_sgd(1e-3, weight_decay=0.1, off_at=10_000)


def decayed(carry, _):
    w, state = carry
    updates, state = decay.update(jnp.zeros_like(w), state, w)
    return (optax.apply_updates(w, updates), state), None


for dtype in (jnp.float32, jnp.bfloat16):
    w = jnp.ones((), dtype)
    (w, _), _ = jax.lax.scan(decayed, (w, decay.init(w)), length=10_000)
    print(f"{jnp.dtype(dtype).name:9} after 10,000 steps of decay: {float(w):.3f} (exact: {np.exp(-1):.3f})")

# %% [markdown]
# ## Exercise
#
# In the first table the chosen switch-off belongs to a run of fixed length. Halve and double `steps`: does the best
# *step*, the best *share* of the run, or the best *total* `weight_decay * off_at` stay the same?
#
# *Hint:* the bias is decided by the total $-a = \alpha\, t_{\rm off}$, and what is left of the run is for the fit.
# Print `strengths[:, None] * shares * steps` beside the held-out errors.
#
# [Solution](../docs/solutions.md)
