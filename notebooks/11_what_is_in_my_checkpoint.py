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
# # What is in my checkpoint: which bias did training leave behind?
#
# Weights are all that is left of a training run, and they tell more than the loss. Two readings need nothing else:
#
# - **Spectra of products**, such as $W_K^\top W_Q$ of a head or $AB$ of an adapter: weight decay on the factors moves
#   their bias from the Frobenius to the nuclear norm, so singular values concentrate. One checkpoint is enough.
# - **The accumulated bias $a$** of tensors $x = m \odot w$, entry by entry: it takes the weights before and after.
#
# As checkpoints serve three small attention models, trained here with no decay, with decay that was switched off, and
# with decay to the end.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file, save_file

import mirrorjax as mj
from mirrorjax import nn, optim

plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

# %% [markdown]
# The task: of eight tokens, each a key and a value, return the value of the one whose key is asked for. Attention can
# solve it with a matrix $W_K^\top W_Q$ of rank four, the dimension of the keys.

# %%
width, heads, tokens = 32, 2, 8


class Lookup(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(8, width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.read = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        return self.read(self.attention(x[:, :1], x))[:, 0, 0]


def batch(key):
    first, second, third = jax.random.split(key, 3)
    keys, values = jax.random.normal(first, (64, tokens, 4)), jax.random.normal(second, (64, tokens, 1))
    wanted = jax.random.randint(third, (64,), 1, tokens)
    rows = jnp.arange(64)
    asked = keys.at[:, 0].set(keys[rows, wanted])
    is_question = jnp.zeros((64, tokens, 1)).at[:, 0].set(1.0)
    x = jnp.concatenate([asked, values * (1 - is_question), is_question, jnp.zeros((64, tokens, 2))], axis=-1)
    return x, values[rows, wanted, 0]


graph, params = nnx.split(Lookup(nnx.Rngs(0)))
steps = 1_000 if short else 4_000


def loss(params, key):
    x, target = batch(key)
    return jnp.mean((nnx.merge(graph, params)(x) - target) ** 2)


@jax.jit
def trained(weight_decay, off_at):
    optimizer = optim.switch_off_adamw(3e-3, weight_decay=weight_decay, off_at=off_at, mask=optim.matrices)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    (end, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    errors = jax.lax.map(lambda key: loss(end, key), jax.random.split(jax.random.key(2), 20))
    return end, jnp.mean(errors)


runs = {"no decay": (0.0, 0), "off after a third": (0.1, steps // 3), "always on": (0.1, steps)}
folder = tempfile.TemporaryDirectory()
for name, (strength, off_at) in runs.items():
    end, error = trained(strength, off_at)
    print(f"{name:18} error {error:.3f}")
    kernels = {"query": end["attention"]["query"]["kernel"], "key": end["attention"]["key"]["kernel"]}
    save_file({part: np.asarray(kernel[...]) for part, kernel in kernels.items()}, f"{folder.name}/{name}.safetensors")

# %% [markdown]
# ## Spectra of attention
#
# Flax keeps the kernels of `nnx.MultiHeadAttention` as (d, heads, r); `attention_factors` takes them as they are. For
# matrices (d, heads · r), as most published files have them, give `heads`. Where it cannot tell the two apart it
# refuses, since each reading gives other numbers. PyTorch's `nn.Linear` keeps the transpose: hand over `.T`.

# %%
spectra, rows = {}, []
for name in runs:
    tensors = load_file(f"{folder.name}/{name}.safetensors")
    spectra[name] = nn.product_spectrum(*nn.attention_factors(tensors["key"], tensors["query"]))
    for head in range(heads):
        row = {key: value[head] for key, value in spectra[name].summary().items()}
        rows.append({"checkpoint": name, "head": head} | row)
print(f"kernels {tensors['key'].shape}")
print(nn.Table(tuple(rows)))

# %% [markdown]
# The three models are equally good, and yet differ: decay has taken both heads nearer to the rank of four that the
# task needs, and after the switch-off a part of that is kept. Read the ratio together with `frobenius`: of a head with
# a norm near 0, which strong decay can leave, it says nothing.
#
# `ratio` is $|X|_* / |X|_F$, from 1 for one singular value to $\sqrt{r}$ for equal ones; it does not depend on the
# scale of $X$, unlike the norms. `effective_rank` counts the singular values that matter.

# %%
figure, axes = plt.subplots(1, heads, figsize=(9, 3.4), sharey=True)
for head, axis in enumerate(axes):
    for name, spectrum in spectra.items():
        axis.plot(1 + np.arange(width // heads), spectrum.relative[head], "o-", label=name)
    axis.set(title=f"head {head}", xlabel="number", yscale="log", ylim=(1e-4, 1.5))
axes[0].set_ylabel("singular value / largest")
axes[-1].legend(fontsize=9)
plt.show()

# %% [markdown]
# **How much is much?** Compare checkpoints of one run over time, or runs that differ in decay alone: a ratio says
# little by itself, since a random product of this size has one, too.

# %%
random = jax.random.normal(jax.random.key(3), (2, 200, width, heads, width // heads)) / width**0.5
drawn = nn.product_spectrum(*nn.attention_factors(random[0], random[1]))
print(f"ratio of random kernels: {jnp.mean(drawn.ratio):.2f} ± {jnp.std(drawn.ratio):.2f}")
for name, spectrum in spectra.items():
    print(f"{name:18} ratio {jnp.mean(spectrum.ratio):.2f}, mean over heads")

# %% [markdown]
# ## The bias of a tensor written as m w
#
# `nn.read_bias` needs the weights before training, too: keep them, or the seed they were drawn from. Each entry has its
# own $a$: 0 is the bias of the start, every unit below 0 narrows the width of $R_a$ by $e^{-4}$, towards L1.

# %%
inputs = jax.random.normal(jax.random.key(4), (300, 20))
targets = jnp.tanh(2 * inputs[:, 0]) * inputs[:, 1]
first, second = jax.random.split(jax.random.key(5))
start = {
    "hidden": {"kernel": jax.random.normal(first, (20, 16)) / 20**0.5, "bias": jnp.zeros(16)},
    "out": {"kernel": jax.random.normal(second, (16, 1)) / 4},
}
split, weights0 = nn.reparameterize(start, {"*/kernel": nn.Factored(mj.Hadamard(), balance=0.5)})
print(split)


@jax.jit
def fitted(off_at):
    optimizer = optim.switch_off_sgd(0.03, 0.9, weight_decay=5e-3, off_at=off_at, mask=split.factored)

    def error(weights):
        layers = split.merge(weights)
        hidden = jnp.tanh(inputs @ layers["hidden"]["kernel"] + layers["hidden"]["bias"])
        return jnp.mean((hidden @ layers["out"]["kernel"][:, 0] - targets) ** 2)

    def step(carry, _):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(error)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights0, optimizer.init(weights0)), length=3_000)
    return weights, error(weights)


for name, off_at in {"no decay": 0, "off after a third": 1_000, "always on": 3_000}.items():
    weights, error = fitted(off_at)
    print(f"{name}: error {error:.1e}; spent by the schedule, a = {-0.3 * 5e-3 / 2 * off_at:.2f}")
    for tensor, bias in nn.read_bias(split, weights0, weights).items():
        print(f"  {tensor:14} {bias}")

# %% [markdown]
# With momentum 0.9 a step counts ten times, so the flow has spent $-a = \frac{1}{2} \cdot 0.005 \cdot 0.03 \cdot 10$ a
# step. The median of the entries is where the schedule put it, whatever the loss was; the spread is what finite steps
# added. With Adam the two would be far apart: notebook 08 goes through that.
#
# ## Exercise
#
# The run "off after a third" has stored its bias. Go on from it for another `steps` steps without decay: does the ratio
# of the heads go back to that of "no decay"?
#
# *Hint:* give `trained` the parameters to start from as an argument, and call it with `weight_decay=0.0`.
#
# [Solution](../docs/solutions.md)
