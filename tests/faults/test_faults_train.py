"""Training loops: bad arguments of `nn.train`, and numbers of it that were wrong once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table

from mirrorjax.nn.training import train, weights_of

KEY = jax.random.key(0)


def lane(rate):
    return optax.sgd(rate), {"w": jnp.ones(2)}, jax.random.key(0)


def square(weights, batch):
    return jnp.sum(weights["w"] ** 2) + 0 * batch


def run(lane=lane, grid=None, **changed):
    options = {"loss": square, "batch": jax.random.uniform, "steps": 2, "every": 1, "progress": False}
    return train(lane, {"rate": [0.1]} if grid is None else grid, **(options | changed))


def using(optimizer=None, weights=None, key=None):
    """A training whose lane returns other things."""
    weights = {"w": jnp.ones(2)} if weights is None else weights
    key = KEY if key is None else key
    return run(lambda rate: (optax.sgd(rate) if optimizer is None else optimizer, weights, key))


def branching(rate):
    return lane(rate if rate > 0 else 0.1)


NEEDY = optax.GradientTransformationExtraArgs(optax.sgd(0.1).init, lambda u, s, p=None, *, hessian, **extra: (u, s))
TRAIN = [
    Refusal("an optimizer class", lambda: using(optax.GradientTransformation), "must return an optax optimizer first"),
    Refusal("an optimizer function", lambda: using(optax.sgd), "called with its learning rate"),
    Refusal("an optimizer 3", lambda: using(3), "must return an optax optimizer first.* got 3"),
    Refusal("lookahead", lambda: using(optax.lookahead(optax.sgd(0.1), 5, 0.5)), "optax.lookahead trains pairs"),
    Refusal("an optimizer that needs more", lambda: using(NEEDY), "needs more than train has.*hessian"),
    Refusal("int weights", lambda: using(weights={"w": jnp.ones(2, int)}), "floating point, got dtype int64 at 'w'"),
    Refusal("complex weights", lambda: using(weights={"w": jnp.ones(2, complex)}), "got dtype complex128 at 'w'"),
    Refusal("numbers as weights", lambda: using(weights={"w": 1.0}), "got 1.0 at 'w'"),
    Refusal("no weights", lambda: using(weights={}), "must return weights to train"),
    Refusal("key 3", lambda: using(key=3), "must be one random key, .* got 3"),
    Refusal("two parts", lambda: run(lambda rate: lane(rate)[:2]), r"\(optimizer, weights, key\), got tuple"),
    Refusal("a lane with if", lambda: run(branching), "the lane needs the value of a number that is traced"),
    Refusal("a lane None", lambda: run(None), "lane"),
    Refusal("a loss None", lambda: run(loss=None), "loss must be a function"),
    Refusal("a batch 3", lambda: run(batch=3), "batch must be a function"),
    Refusal("metrics 3", lambda: run(metrics=3), "metrics must be a function"),
    Refusal("a loss of vectors", lambda: run(loss=lambda w, b: w["w"]), "loss must return one real number"),
    Refusal("a loss of words", lambda: run(loss=lambda w, b: "x"), "loss must return numbers"),
    Refusal("a loss with float()", lambda: run(loss=lambda w, b: float(w["w"][0])), "loss needs the value"),
    Refusal("metrics named loss", lambda: run(metrics=lambda w: {"loss": 1.0}), "have the names of variables of every"),
    Refusal("metrics of words", lambda: run(metrics=lambda w: {"a": "x"}), "metrics must return numbers .* 'x' at 'a'"),
    Refusal("complex metrics", lambda: run(metrics=lambda w: {"a": 1j}), "metrics must be real"),
    Refusal("metrics named rate", lambda: run(metrics=lambda w: {"rate": w["w"][0]}), "rate"),
    Refusal("metrics with numpy", lambda: run(metrics=lambda w: np.sin(w["w"])), "metrics needs the value"),
    Refusal("steps 1.5", lambda: run(steps=1.5), "steps must be a whole number"),
    Refusal("chunk 0", lambda: run(chunk=0), "chunk must be"),
]


def rated(**lanes):
    return weights_of(TRAINED, {"w": jnp.ones(2)}, **lanes)


TRAINED = run(keep=True, grid={"rate": [0.1, 0.2]})
WEIGHTS_OF = [
    Refusal("an unknown lane", lambda: rated(rate=0.7), r"no lane has rate=0.7; its values are \[0.1 0.2\]"),
    Refusal("a lane of words", lambda: rated(rate="a"), "no lane has rate='a'"),
    Refusal("an unknown parameter", lambda: rated(depth=1), "depth is no dimension"),
    Refusal("like None", lambda: weights_of(TRAINED, None, rate=0.1), "like must be weights"),
    Refusal("dataset None", lambda: weights_of(None, {"w": jnp.ones(2)}), "dataset must be the dataset"),
]


@table([*TRAIN, *WEIGHTS_OF])
def test_refusals(row):
    row.check()


# Right values
def trained(optimizer, **changed):
    """The weights that train ends with and those of the same loop written out."""
    start = {"w": jnp.asarray([1.0, 2.0])}
    loss = lambda w, b: jnp.sum(jnp.cosh(w["w"]))  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):  # as optax needs it
        found = run(lambda rate: (optimizer, start, KEY), loss=loss, keep=True, metrics=None, **changed)
        weights, state = start, optimizer.init(start)
        for _ in range(2):
            value, gradient = jax.value_and_grad(loss)(weights, 0.0)
            updates, state = optimizer.update(
                gradient, state, weights, value=value, grad=gradient, value_fn=lambda w: loss(w, 0.0)
            )
            weights = optax.apply_updates(weights, updates)
    return found["weights.w"].values[0], weights["w"]


RIGHTS = [
    # The same sums in another program.
    Right("lbfgs", lambda: trained(optax.lbfgs()), 1e-6),
    Right("polyak_sgd", lambda: trained(optax.polyak_sgd()), 1e-6),
    Right("reduce_on_plateau", lambda: trained(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())), 1e-12),
    Right(
        "backtracking, two batches a step",
        lambda: trained(optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8)), accumulate=np.int64(2)),
        1e-6,
    ),
    Right(
        "steps and chunk of NumPy",
        lambda: (run(steps=np.int64(2), every=np.int32(1), chunk=np.int64(1))["loss"].values[0, 1:], [2.0, 2 * 0.8**2]),
        1e-12,
    ),
]


@table(RIGHTS)
def test_right_values(row):
    row.check()


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_the_dataset_of_a_training_is_written_and_read(tmp_path, engine):
    found = run(store=tmp_path / "run", keep=True)
    found.to_netcdf(tmp_path / "run.nc", engine=engine)
    import xarray

    with xarray.open_dataset(tmp_path / "run.nc", engine=engine) as back:
        np.testing.assert_array_equal(back["loss"], found["loss"])
        assert back.attrs.keys() == found.attrs.keys()
