"""Tensors as g(w): the model starts as it was, only what should train does; bad rules are refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import Array
from registry import FAMILIES
from training import train, update

import mirrorjax as mj
from mirrorjax import nn, optim

G = {
    "linear": mj.Linear(),
    "hadamard": mj.Hadamard(),
    "power1": mj.PowerDifference(1),
    "power3": mj.PowerDifference(3),
    "log": mj.LogDifference(),
    "exp": mj.ExpDifference(),
    "attention": mj.MatrixProduct(),
    "lora": mj.MatrixProduct(transpose=False),
}


def tensor(*shape: int, seed: int = 0, dtype: str = "float64") -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype=dtype)


def params() -> dict:
    return {"layers": [{"kernel": tensor(4, 3, seed=i), "bias": tensor(3, seed=9 - i)} for i in range(2)]}


def same(one: object, other: object, rtol: float = 1e-7) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), one, other)


@pytest.mark.parametrize("name", G)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("balance", [1e-3, 1.0])
def test_initial_weights_give_the_tensor_back(name, dtype, balance):
    x = tensor(2, 5, 4, dtype=dtype).at[0, 0, 0].set(0.0)
    rule = nn.Factored(G[name], balance)
    weights, _ = rule.split(x, None)
    back = rule.merge(weights, None)
    assert back.dtype == x.dtype
    eps = float(jnp.finfo(x.dtype).eps)
    # Powers up to 6 and logarithms up to 7 multiply the rounding of w; a product of 4 singular pairs sums as many.
    np.testing.assert_allclose(back, x, rtol=0, atol=32 * eps * float(jnp.max(jnp.abs(x))))


def test_balance_is_what_the_theory_calls_it():
    x = tensor(7)
    m, w = nn.initial_weights(mj.Hadamard(), x, jnp.asarray(0.3))
    np.testing.assert_allclose(m**2 - w**2, 0.3, rtol=1e-13)
    np.testing.assert_allclose(m * w, x, rtol=1e-15)
    R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (m, w))
    slope = R.hessian(jnp.zeros(7), jnp.asarray(0.0))
    np.testing.assert_allclose(np.diag(slope) if slope.ndim == 2 else slope, 1 / 0.3, rtol=1e-12)  # 1 / (2 A), A = b/2
    u, v = nn.initial_weights(mj.LogDifference(), x, jnp.asarray(0.3))
    np.testing.assert_allclose(u * v, 0.09, rtol=1e-14)
    p, q = (factor**4 for factor in nn.initial_weights(mj.PowerDifference(2), x, jnp.asarray(0.3)))
    np.testing.assert_allclose(p * q, 0.15**2, rtol=1e-13)


@pytest.mark.parametrize("name", ["quadratic", "gram", "separable", "custom", "hadamard3"])
def test_families_without_a_rule_say_so_and_take_yours(name):
    g = FAMILIES[name].build(3)
    with pytest.raises(ValueError, match=r"kernel: .*initial=lambda x: w"):
        nn.reparameterize({"kernel": jnp.ones(3)}, {"kernel": g})
    doubled = mj.Custom(lambda w: 2 * w)
    split, weights = nn.reparameterize(params(), {"*/bias": nn.Factored(doubled, initial=lambda x: x / 2)})
    same(split.merge(weights), params(), rtol=1e-15)
    with pytest.raises(ValueError, match=r"layers/0/bias: Custom does not give the tensor back: off by"):
        nn.reparameterize(params(), {"*/bias": nn.Factored(doubled, initial=lambda x: x)})
    with pytest.raises(ValueError, match=r"the weights give a tensor of shape \(1,\), not \(3,\)"):
        nn.reparameterize(params(), {"*/bias": nn.Factored(doubled, initial=lambda x: x[:1])})


def test_chosen_tensors_become_factors_and_the_rest_stays():
    split, weights = nn.reparameterize(params(), {"layers/0/kernel": mj.Hadamard(), "*/kernel": nn.Frozen()})
    first, second = weights["layers"]
    assert isinstance(first["kernel"], tuple)
    assert second["kernel"] is None
    assert second["bias"].shape == (3,)
    same(split.merge(weights), params(), rtol=1e-15)
    assert split.counts == (30, 24 + 3 + 3)
    rows = split.report(jax.grad(lambda w: jnp.sum(split.merge(w)["layers"][0]["bias"] ** 2))(weights))
    assert [row["name"] for row in rows] == ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"]
    assert [row["rule"] for row in rows] == ["", "Hadamard", "", "Frozen"]
    assert [row["trainable"] for row in rows] == [3, 24, 3, 0]
    np.testing.assert_allclose(rows[0]["gradient_norm"], 2 * np.linalg.norm(params()["layers"][0]["bias"]))
    assert [row["gradient_norm"] for row in rows[1:]] == [0.0, 0.0, 0.0]


def test_what_is_split_prints_as_a_table():
    split, weights = nn.reparameterize(params(), {"layers/0/kernel": mj.Hadamard(), "*/kernel": nn.Frozen()})
    lines = str(split).splitlines()
    assert lines[0].split() == ["name", "rule", "shape", "parameters", "trainable"]
    assert lines[2] == "layers/0/kernel  Hadamard  (4, 3)          12         24"
    assert lines[-1] == "4 tensors, 30 parameters, 30 trained"
    table = split.report(jax.tree.map(jnp.ones_like, weights))
    assert [line.split()[-1] for line in str(table).splitlines()] == ["gradient_norm", "1.732", "4.899", "1.732", "0"]
    assert [row["name"] for row in table[:2]] == ["layers/0/bias", "layers/0/kernel"]
    assert str(nn.Table(())) == "no rows"


def test_gradients_are_the_chain_rules():
    f = lambda tree: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))  # noqa: E731
    split, weights = nn.reparameterize(params(), {"*/kernel": mj.Hadamard()})
    found = jax.grad(lambda w: f(split.merge(w)))(weights)
    for layer, w, slope in zip(params()["layers"], weights["layers"], found["layers"], strict=True):
        m, other = w["kernel"]
        same(slope["kernel"], (jnp.cos(layer["kernel"]) * other, jnp.cos(layer["kernel"]) * m), rtol=1e-13)
        same(slope["bias"], jnp.cos(layer["bias"]), rtol=1e-15)


def test_low_rank_adapters_start_at_the_model_and_train_alone():
    rules = {"*/kernel": nn.LowRank(2, scale=0.5), "*": nn.Frozen()}
    split, weights = nn.reparameterize(params(), rules, key=jax.random.key(0))
    same(split.merge(weights), params(), rtol=0)
    assert split.counts == (30, 2 * (4 * 2 + 2 * 3))
    loss = lambda w: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(split.merge(w)))  # noqa: E731
    trained, _ = train(optax.sgd(0.05), loss, weights, 5)
    for layer, start, w in zip(split.merge(trained)["layers"], params()["layers"], trained["layers"], strict=True):
        A, B = w["kernel"]
        np.testing.assert_allclose(layer["kernel"], start["kernel"] + 0.5 * A @ B, rtol=1e-14)
        assert np.any(layer["kernel"] != start["kernel"])
        np.testing.assert_array_equal(layer["bias"], start["bias"])
    first, second = (layer["kernel"][0] for layer in weights["layers"])
    assert np.all(first != second)  # each its own draw


def test_stacked_layers_are_a_batch():
    stacked = {"kernel": tensor(3, 5, 4)}
    split, weights = nn.reparameterize(stacked, {"kernel": nn.LowRank(2)}, key=jax.random.key(0))
    assert [factor.shape for factor in weights["kernel"]] == [(3, 5, 2), (3, 2, 4)]
    moved = {"kernel": (weights["kernel"][0], tensor(3, 2, 4))}
    one = stacked["kernel"][1] + moved["kernel"][0][1] @ moved["kernel"][1][1]
    np.testing.assert_allclose(split.merge(moved)["kernel"][1], one, rtol=1e-14)


def test_compatible_regularizers_are_summed():
    rules = {"layers/0/kernel": mj.Hadamard(), "layers/1/kernel": nn.LowRank(1), "*": nn.Frozen()}
    split, weights = nn.reparameterize(params(), rules, key=jax.random.key(0))
    np.testing.assert_allclose(split.compatible(weights), mj.WeightDecay()(weights), rtol=1e-14)


def test_flax_models_are_split_run_and_left_alone():
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64),
        nnx.relu,
        nnx.Linear(4, 1, rngs=nnx.Rngs(1), param_dtype=jnp.float64),
    )
    before = jax.tree.map(jnp.copy, nnx.state(model))
    graph, state = nnx.split(model, nnx.Param)
    rules = {"layers/0/kernel": mj.Hadamard(), "layers/2/bias": nn.Frozen()}
    split, weights = nn.reparameterize(state, rules)
    x = tensor(8, 3)
    run = eqx.filter_jit(lambda split, weights: nnx.merge(graph, split.merge(weights))(x))
    np.testing.assert_allclose(run(split, weights), model(x), rtol=1e-13)

    loss = lambda weights: jnp.mean((run(split, weights) - 1.0) ** 2)  # noqa: E731
    optimizer = optim.pilot(
        optax.sgd(0.05, 0.9), balance=1.0, width=1e-3, t_off=0.2, step_size=0.05, mask=split.factored
    )
    trained, _ = train(optimizer, loss, weights, 20)
    assert loss(trained) < loss(weights)
    same(nnx.state(model), before, rtol=0)
    nnx.update(model, split.merge(trained))  # back into the model, by the user's own hand
    np.testing.assert_allclose(model(x), run(split, trained), rtol=1e-13)


def test_flax_optimizers_take_the_transformations():
    def model() -> nnx.Linear:
        return nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)

    def fit(network: nnx.Linear, transformation: optax.GradientTransformation) -> nnx.Linear:
        optimizer = nnx.Optimizer(network, transformation, wrt=nnx.Param)
        step = nnx.jit(lambda net, opt: opt.update(net, nnx.grad(lambda net: jnp.mean(net(tensor(8, 3)) ** 2))(net)))
        for _ in range(4):
            step(network, optimizer)
        return network

    def kernels(network: object) -> object:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, network)

    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam
        ours = fit(model(), optim.switch_off_adamw(1e-2, weight_decay=0.1, off_at=jnp.inf, mask="kernel"))
        theirs = fit(model(), optax.adamw(1e-2, weight_decay=0.1, mask=kernels))
    same(nnx.state(ours), nnx.state(theirs), rtol=0)


def test_another_structure_is_refused():
    split, _ = nn.reparameterize(params(), {"*/kernel": mj.Hadamard()})
    with pytest.raises(ValueError, match="layers"):
        split.merge({"heads": []})


def test_the_mask_of_factors_decays_factors_only():
    split, weights = nn.reparameterize(params(), {"*/kernel": mj.Hadamard()})
    decay = optim.scheduled_weight_decay(0.5, mask=split.factored)
    u, _ = update(decay, jax.tree.map(jnp.zeros_like, weights), decay.init(weights), weights)
    for got, w in zip(u["layers"], weights["layers"], strict=True):
        same(got["kernel"], w["kernel"], rtol=0)
        assert not np.any(got["bias"])


def test_seeds_are_lanes():
    def merged(seed: Array) -> dict:
        split, weights = nn.reparameterize(params(), {"*/kernel": nn.LowRank(2)}, key=jax.random.key(seed))
        return split.merge(jax.tree.map(lambda leaf: leaf + 1.0, weights))

    lanes = jax.vmap(merged)(jnp.arange(3))
    same(jax.tree.map(lambda leaf: leaf[1], lanes), merged(jnp.asarray(1)), rtol=1e-14)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"*/kernal": mj.Hadamard()}, r"'\*/kernal': the nearest of 4 are layers/0/kernel"),
        ({"*": nn.Frozen(), "*/kernel": mj.Hadamard()}, r"every tensor named by '\*/kernel' goes to an earlier"),
        ({"*/kernel": mj.Square()}, r"layers/0/kernel: Square gives x = w\^2 >= 0 only, the tensor goes down to -"),
        ({"*/bias": mj.MatrixProduct()}, r"layers/0/bias: MatrixProduct gives matrices, the tensor has shape \(3,\)"),
        ({"*/bias": nn.LowRank(1)}, r"layers/0/bias: LowRank\(1\) takes matrices .* got shape \(3,\)"),
        ({"*/kernel": nn.LowRank(4)}, r"LowRank\(4\) takes matrices of at least that size, got shape \(4, 3\)"),
        ({"*/kernel": nn.LowRank(1)}, "give reparameterize a key"),
        ({"*/kernel": "lora"}, "a rule must be Factored.*got 'lora'"),
    ],
)
def test_what_does_not_fit_is_refused(rules, words):
    with pytest.raises(ValueError, match=words):
        nn.reparameterize(params(), rules)


def test_bad_numbers_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="balance must be positive and finite, got 0"):
        nn.Factored(mj.Hadamard(), 0.0)
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got 0"):
        nn.LowRank(0)
    with pytest.raises(ValueError, match="scale must be positive and finite, got -1"):
        nn.LowRank(1, -1.0)
    with pytest.raises(ValueError, match="count is to be reparameterized and is no floating-point array"):
        nn.reparameterize({"count": jnp.arange(3)}, {"count": mj.Hadamard()})
    with pytest.raises(ValueError, match="LogDifference does not give the tensor back"):
        nn.reparameterize({"x": jnp.array([1e5])}, {"x": mj.LogDifference()})  # e^{x/2} overflows


def test_sparsity_and_pruning():
    tree = {"kernel": jnp.array([[0.1, -0.5], [0.0, 2.0]]), "bias": jnp.zeros(2)}
    assert float(nn.sparsity(tree)) == 0.5
    assert float(nn.sparsity(tree, 0.2, "kernel")) == 0.5
    pruned = nn.prune(tree, 0.75, "kernel")
    np.testing.assert_array_equal(pruned["kernel"], [[0, 0], [0, 2.0]])
    assert float(nn.sparsity(pruned, patterns="kernel")) == 0.75
    same(nn.prune(tree, 0.0), tree, rtol=0)
    assert float(nn.sparsity(nn.prune(tree, 1.0))) == 1.0
    with pytest.raises(ValueError, match=r"share must lie in 0 .. 1, got 80"):
        nn.prune(tree, 80)
