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
# # Prune by reparameterizing: how sparse can a network get before it notices?
#
# Write every kernel as $x = m \odot w$, let weight decay move the bias from L2 to L1, end the decay, prune what is
# small. That is PILoT (Jacobs and Burkholz, [arXiv 2408.09966](https://arxiv.org/abs/2408.09966)). The network has
# then chosen its few weights *before* pruning, and pruning takes nothing away. This notebook prunes a perceptron for
# handwritten digits to 5 % and 2 % of its weights, beside magnitude pruning with and without decay, each with as many
# settings tried and the best taken on held-out digits.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import mirrorjax as mj
from mirrorjax import nn, optim

plt.style.use("mirrorjax.plot.talk")
short = "MIRRORJAX_SHORT" in os.environ  # smaller sizes, for tests

raw = load_digits()
order = np.random.default_rng(0).permutation(len(raw.target))
X, y = raw.data[order].astype(np.float32), raw.target[order]
X = jnp.asarray((X - X[660:].mean()) / X[660:].std())
y = jnp.asarray(y)
test, held_out, training = slice(0, 360), slice(360, 660), slice(660, None)

# %% [markdown]
# ## The width, and how to choose it
#
# With $m^2 - w^2 = b$ at the start, the *balance*, decay shrinks the width $A = |m^2 - w^2| / 2$ of the bias by a known
# factor whatever the loss is: entries $|x| \gg A$ see L1 and are thinned out, entries $|x| \ll A$ see L2. So
# `optim.pilot` asks for the width that decay ends with. The guide, from measurements (docstring of `optim.pilot`):
#
# - **balance** 1, above all $x^2$ at the start: the bias is then L2 while the network finds its way, and learning
#   rates stay what they were.
# - **width** in units of a freshly drawn entry, here about 0.1: a third of it to prune to 20 %, a sixth for 10 %, a
#   tenth for 5 %, a fiftieth for 2 %. When in doubt take the narrower: too wide a one leaves too much.
# - **time**: the strength that follows, $\log(b / 2A) / (2 t_{\rm off})$, must not drown the loss. With momentum 0.9
#   runs whose strength was far above 0.1 lost whole layers; `optim.has_collapsed(state)` says so. Decay for longer, or
#   use a larger learning rate.
#
# The schedule that ends with this width follows from it:

# %%
balance, width = 1.0, 0.01
schedule = optim.pilot_schedule(balance, width, t_off=50.0)
print(schedule, f" spends {schedule.integral(50.0):.3f} = log(balance / (2 width)) / 4")

# %% [markdown]
# ## Training, pruning, tuning
#
# All methods train 40 epochs by SGD with momentum and tune 20 epochs after pruning. They differ in whether the kernels
# are $x$ or $m \odot w$, and in decay. `nn.prune` sets the smallest share of all entries to 0, and `optim.keep_zeros`
# keeps them there.

# %%
sizes, batch, epochs, tuning = (64, 128, 64, 10), 64, 40, 20
per_epoch = (len(y) - 660) // batch
seeds, sparsities = (2, (0.9, 0.95)) if short else (5, (0.8, 0.9, 0.95, 0.98))
KERNELS = "*/kernel"


def drawn(key):
    """A perceptron's parameters, with kernels of variance 1 / inputs."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


split, _ = nn.reparameterize(drawn(jax.random.key(0)), {KERNELS: nn.Factored(mj.Hadamard(), balance)})
plain, _ = nn.reparameterize(drawn(jax.random.key(0)), {})
print(split)


def logits(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def accuracy(params, rows):
    return jnp.mean(jnp.argmax(logits(params, X[rows]), axis=-1) == y[rows])


def fit(form, weights, optimizer, key, epochs):
    def loss(weights, rows):
        return optax.softmax_cross_entropy_with_integer_labels(logits(form.merge(weights), X[rows]), y[rows]).mean()

    def step(carry, key):
        weights, state = carry
        gradient = jax.grad(loss)(weights, 660 + jax.random.randint(key, (batch,), 0, len(y) - 660))
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), optim.current_strength(state)

    keys = jax.random.split(key, epochs * per_epoch)
    (weights, state), strengths = jax.lax.scan(step, (weights, optimizer.init(weights)), keys)
    return weights, state, strengths[::per_epoch]


def pruned(form, weights, share):
    """The weights with the smallest entries of x set to 0, and their factors with them."""
    tensors = nn.prune(form.merge(weights), share, KERNELS)
    return jax.tree.map(lambda x, part: jax.tree.map(lambda w: jnp.where(x == 0, 0.0, w), part), tensors, weights)


def sgd(rate):
    return optax.sgd(rate, momentum=0.9)


def magnitude(rate, strength):
    return optim.decoupled_weight_decay(sgd(rate), strength, step_size=rate, mask=KERNELS)


def with_width(rate, width):
    t_off = rate * (25 * per_epoch)  # decay for 25 of the 40 epochs
    return optim.pilot(sgd(rate), balance=balance, width=width, t_off=t_off, step_size=rate, mask=KERNELS)


def published(rate, alpha):
    """The rule of the paper: the strength follows the training accuracy."""
    rule = optim.pilot_decay(
        alpha,
        delta=1.2,
        least_norm=100.0,
        epochs=epochs,
        steps_per_epoch=per_epoch,
        accuracy=lambda weights: accuracy(split.merge(weights), slice(660, 1172)),
        pairs=split.factored,
    )
    return optax.chain(optax.trace(0.9), rule, optax.scale_by_learning_rate(rate))


methods = {
    "magnitude": (plain, magnitude, [0.0]),
    "magnitude after decay": (plain, magnitude, [0.01, 0.03, 0.1]),
    "spred: m w, constant decay": (split, magnitude, [0.003, 0.01, 0.03]),
    "PILoT, width given": (split, with_width, [0.05, 0.01, 0.002]),
    "PILoT, published rule": (split, published, [0.01, 0.03, 0.1]),
}
rates = [0.2] if short else [0.06, 0.2]


def run(name):
    form, build, settings = methods[name]
    if len(settings) == 1:  # as many settings for all methods: without a strength to choose, more learning rates
        grid = [(rate, settings[0]) for rate in rates + ([] if short else [0.02, 0.04, 0.1, 0.3])]
    else:
        grid = [(rate, strength) for rate in rates for strength in settings]

    def lane(setting, seed):
        rate, strength = setting
        params = drawn(jax.random.key(seed))
        weights = params
        if form is split:  # m w = x and m^2 - w^2 = balance, as reparameterize does it
            factor = lambda x: nn.initial_weights(mj.Hadamard(), x, balance)  # noqa: E731
            weights = [{"kernel": factor(layer["kernel"]), "bias": layer["bias"]} for layer in params]
        weights, _, strengths = fit(form, weights, build(rate, strength), jax.random.key(100 + seed), epochs)
        found = {"trained": accuracy(form.merge(weights), test), "alpha": strengths}
        found |= {"strength": strength, "rate": rate}
        sizes = jnp.concatenate([jnp.abs(layer["kernel"]).ravel() for layer in form.merge(weights)])
        for share in sparsities:
            cut = pruned(form, weights, share)
            tuner = optax.chain(sgd(optax.cosine_decay_schedule(rate, tuning * per_epoch)), optim.keep_zeros(KERNELS))
            silent = optax.chain(optim.scheduled_weight_decay(0.0), tuner)
            tuned, _, _ = fit(form, cut, silent, jax.random.key(200 + seed), tuning)
            found[f"{share:.0%}"] = {
                "just after": accuracy(form.merge(cut), test),
                "tuned": accuracy(form.merge(tuned), test),
                "held out": accuracy(form.merge(tuned), held_out),
            }
        return found | {"entries": jnp.sort(sizes)[::-1]}

    rates_, strengths_ = (jnp.asarray(part, jnp.float32) for part in zip(*grid, strict=True))
    lanes = jax.vmap(jax.vmap(lane, (None, 0)), ((0, 0), None))
    return jax.tree.map(np.asarray, jax.jit(lanes)((rates_, strengths_), jnp.arange(seeds)))


results = {name: run(name) for name in methods}


# %% [markdown]
# For each method and sparsity the setting that is best on held-out digits after tuning, over the seeds:


# %%
def best(name, share):
    return int(np.argmax(results[name][f"{share:.0%}"]["held out"].mean(axis=1)))


rows = []
for share in sparsities:
    for name in methods:
        at, found = best(name, share), results[name][f"{share:.0%}"]
        row = {"pruned": f"{share:.0%}", "method": name, "rate": results[name]["rate"][at, 0]}
        row["strength"] = results[name]["strength"][at, 0]
        row["before"] = f"{100 * results[name]['trained'][at].mean():.1f}"
        for key in ("just after", "tuned"):
            row[key] = f"{100 * found[key][at].mean():.1f} ± {100 * found[key][at].std(ddof=1):.1f}"
        rows.append(row)
print(nn.Table(tuple(rows)))

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 4))
for name in methods:
    at = [best(name, share) for share in sparsities]
    for axis, key in zip(axes, ("just after", "tuned"), strict=False):
        values = [100 * results[name][f"{share:.0%}"][key][i] for share, i in zip(sparsities, at, strict=True)]
        axis.errorbar(sparsities, [v.mean() for v in values], [v.std() for v in values], label=name, capsize=3)
        axis.set(title=f"accuracy {key}, %", xlabel="share pruned")
    axes[2].plot(results[name]["entries"][at[-1], 0], label=name)
axes[2].set(title="entries before pruning", xlabel="rank", ylabel="|x|", xscale="log", yscale="log", ylim=(1e-6, 3))
axes[0].legend(fontsize=9)
plt.show()

# %% [markdown]
# The right panel is the reason. Entries of a dense network fall off slowly, and whatever is cut was in use. Entries of
# $m \odot w$ with an L1 bias fall off a cliff: there are a few hundred, and the rest is negligible. Pruning there costs
# little, with a width that fits the sparsity. Three things to take from the table:
#
# - Without tuning the difference is everything; with tuning most of it is made up for until very high sparsity.
# - Decay of $x$ itself is the fairer baseline: it gains accuracy after tuning, but pruning costs as much as before,
#   since it shrinks all entries alike.
# - spred with the right constant strength does as well here. It has to be found for each learning rate and length of
#   run, since the width it reaches depends on them; PILoT's width is chosen directly.
#
# ## What the published rule does
#
# The strength rises by a factor after an epoch in which training accuracy rose, and falls after others and in the
# second half. On digits training accuracy is soon at 100 % and cannot rise, so the strength starts to fall early.

# %%
figure, axis = plt.subplots()
rule = results["PILoT, published rule"]
for at in range(len(rule["alpha"])):
    axis.plot(rule["alpha"][at, 0], label=f"rate {rule['rate'][at, 0]:.2f}, first {rule['strength'][at, 0]:.2f}")
axis.axvline(epochs / 2, color="k", linestyle=":", linewidth=1)
axis.set(xlabel="epochs", ylabel=r"$\alpha_k$", yscale="log", title="The strength that the rule chose")
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## Exercise
#
# Prune in rounds: with `share = 1 - (1 - s) ** (k / 4)` after round k of 4, and a quarter of the tuning after each. How
# much of PILoT's lead is left over magnitude pruning at 98 %?
#
# *Hint:* call `pruned` and `fit` in turn inside `lane`, each with `tuning // 4` epochs; `mirrorjax reproduce pilot`
# has this as "magnitude, iterative".
#
# [Solution](../docs/solutions.md)
