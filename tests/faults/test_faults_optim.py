"""Bad arguments of the optax transformations, and training steps that once were wrong."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table

import mirrorjax as mj
from mirrorjax import optim

PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": jnp.full(2, 2.0)}
SGD = optax.sgd(0.1)
OFF = mj.SwitchOff(0.25, 3e-2)
injected: Any = optax.inject_hyperparams


class Flags(eqx.Module):
    """A tree of booleans that is callable, as every module of a network is."""

    kernel: Any
    bias: Any

    def __call__(self, x):
        return x


FLAGS = Flags(True, False)
OF_FLAGS = Flags(jnp.ones(2), jnp.ones(2))


def updated(transformation, params=PARAMS, steps=1):
    """What the transformation adds to gradients of 0, step by step at fixed parameters; the last of them."""
    u, state = None, transformation.init(params)
    for _ in range(steps):
        u, state = transformation.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return u


def rule(**changed):
    """PILoT's rule on one pair, with some of its arguments changed."""
    arguments = {"delta": 1.1, "least_norm": 1.0, "epochs": 4, "steps_per_epoch": 2, "accuracy": lambda params: 0.5}
    return optim.pilot_decay(**({"alpha": 0.1} | arguments | changed))


def decay(alpha, params=PARAMS, **how):
    return updated(optim.scheduled_weight_decay(alpha, **how), params)


MASKS = [
    *(
        Refusal(
            f"mask={mask!r}",
            lambda mask=mask: optim.scheduled_weight_decay(0.1, mask=mask),
            rf"a mask must be True or False, a tree of them .* got {got}",
        )
        for mask, got in {3: "3", b"*/kernel": "b'", 1.0: "1.0", ("*/kernel", 3): r"'\*/kernel' at '0'"}.items()
    ),
    Refusal("a tree of strings", lambda: decay(0.1, mask={"a": "x", "b": "y"}), "got 'x' at 'a'"),
    Refusal("a tree of numbers", lambda: decay(0.1, mask={"a": 1, "b": 0}), "got 1 at 'a'"),
    Refusal("arrays of booleans", lambda: decay(0.1, mask={"a": np.ones(3, bool), "b": True}), "got array.* at 'a'"),
    Refusal("an empty list", lambda: decay(0.1, mask=[]), r"no entry for the parameter 'a/bias'"),
    Refusal(
        "another key",
        lambda: decay(0.1, mask={"a": True, "c": True}),
        "no parameter is at 'c', where the mask has",
    ),
    Refusal("a missing key", lambda: decay(0.1, mask={"a": True}), "the mask has no entry for the parameter 'b'"),
    Refusal(
        "a list for a tuple",
        lambda: decay(0.1, (jnp.ones(1), jnp.ones(1)), mask=[True, False]),
        "built of other containers",
    ),
    Refusal("a function that returns 3", lambda: decay(0.1, mask=lambda params: 3), "a mask must be .* got 3"),
    Refusal("a function that returns None", lambda: decay(0.1, mask=lambda params: None), "no entry for the parameter"),
    Refusal(
        "a function with an if on a tensor",
        lambda: jax.jit(lambda params: decay(0.1, params, mask=lambda p: bool(p["b"][0] > 0)))(PARAMS),
        "the mask needs the value of a number that is traced",
    ),
    Refusal("a pattern that names nothing", lambda: decay(0.1, mask="*/kernal"), "no tensor is named by the pattern"),
    Refusal("path_mask of a number", lambda: optim.path_mask(3), "path_mask takes a pattern .* got 3"),
    Refusal("path_mask of bytes", lambda: optim.path_mask(b"a"), "path_mask takes a pattern"),
    Refusal("path_mask of nothing", lambda: optim.path_mask([]), r"path_mask takes a pattern .* got \[\]"),
    Refusal("mask of hyperbolic_step", lambda: optim.hyperbolic_step(SGD, 1.0, step_size=0.1, mask=3), "got 3"),
    Refusal("mask of hyperbolic_gradient", lambda: optim.hyperbolic_gradient(1.0, mask=b"a"), "a mask must be"),
    Refusal("mask of keep_zeros", lambda: optim.keep_zeros(3), "a mask must be"),
    Refusal("mask of switch_off_sgd", lambda: optim.switch_off_sgd(0.1, weight_decay=1.0, off_at=1, mask=3), "got 3"),
    Refusal(
        "mask of another structure, hyperbolic_step",
        lambda: updated(optim.hyperbolic_step(SGD, 1.0, step_size=0.1, mask={"c": True})),
        "no parameter is at 'c'",
    ),
]

STRENGTHS = [
    Refusal("alpha 'a'", lambda: optim.scheduled_weight_decay("a"), "alpha must be a number"),
    Refusal("alpha None", lambda: optim.scheduled_weight_decay(None), "alpha must be a number"),
    Refusal("alpha of two numbers", lambda: optim.scheduled_weight_decay([0.1, 0.2]), "alpha must be a scalar"),
    Refusal("alpha is a class", lambda: optim.scheduled_weight_decay(mj.SwitchOff), "the class SwitchOff itself"),
    Refusal(
        "a schedule of vectors",
        lambda: decay(lambda count: jnp.ones(3)),
        "value of the schedule alpha must be a scalar",
    ),
    Refusal(
        "a schedule of strings",
        lambda: decay(lambda count: "a"),
        "the value of the schedule alpha must be a number",
    ),
    Refusal("a schedule of None", lambda: decay(lambda count: None), "schedule alpha must be a number .* got None"),
    Refusal("a schedule of booleans", lambda: decay(lambda count: count < 3), "schedule alpha must be real"),
    Refusal(
        "a schedule with an if",
        lambda: jax.jit(
            lambda count: optim.clock.as_strength(lambda n: 1.0 if n < 3 else 0.0, "alpha")(optim.clock.at_count(count))
        )(jnp.asarray(1)),
        "the schedule alpha needs the value",
    ),
    Refusal(
        "a step size of vectors",
        lambda: decay(OFF, step_size=lambda count: jnp.ones(2)),
        "value of the schedule step_size must be a scalar",
    ),
    Refusal(
        "a step size of None",
        lambda: decay(OFF, step_size=lambda count: None),
        "schedule step_size must be a number",
    ),
    Refusal("a step size 'a'", lambda: decay(OFF, step_size="a"), "step_size must be a number"),
    Refusal("a step size of 0", lambda: decay(OFF, step_size=0.0), "step_size must be positive"),
    Refusal(
        "a step size that is a schedule of time",
        lambda: optim.decoupled_weight_decay(SGD, OFF, step_size=mj.CosineDecay(0.1, 1.0)),
        "step_size counts steps, CosineDecay is a function of the flow's time",
    ),
    Refusal(
        "the class of such a schedule",
        lambda: optim.decoupled_weight_decay(SGD, OFF, step_size=mj.CosineDecay),
        "step_size counts steps, CosineDecay is a function",
    ),
    Refusal(
        "a learning rate that is a schedule of time",
        lambda: optim.switch_off_adamw(mj.CosineDecay(0.1, 1.0), off_at=3),
        "learning_rate counts steps, CosineDecay",
    ),
    Refusal(
        "hyperbolic_step with a schedule of time as its step size",
        lambda: optim.hyperbolic_step(SGD, 1.0, step_size=mj.Constant(0.1)),
        "step_size counts steps, Constant",
    ),
    Refusal(
        "weight_decay that is a schedule of time",
        lambda: optim.switch_off_sgd(0.1, weight_decay=OFF, off_at=3),
        "weight_decay counts steps here, SwitchOff",
    ),
    Refusal(
        "inject_hyperparams of decoupled_weight_decay",
        lambda: injected(optim.decoupled_weight_decay, static_args=("optimizer",))(
            optimizer=SGD, alpha=OFF, step_size=1e-2
        ).init(PARAMS),
        "SwitchOff is a function of the flow's time.* name it in static_args",
    ),
    Refusal(
        "inject_hyperparams of its step size",
        lambda: injected(optim.decoupled_weight_decay, static_args=("optimizer",))(
            optimizer=SGD, alpha=0.1, step_size=mj.CosineDecay(0.1, 1.0)
        ).init(PARAMS),
        "CosineDecay is a function of the flow's time",
    ),
    Refusal(
        "inject_hyperparams of switch_off_adamw",
        lambda: injected(optim.switch_off_adamw)(learning_rate=0.1, weight_decay=OFF, off_at=3).init(PARAMS),
        "SwitchOff is a function of the flow's time",
    ),
    Refusal(
        "inject_hyperparams of hyperbolic_gradient",
        lambda: injected(optim.hyperbolic_gradient)(alpha=1.0, beta=OFF).init(PARAMS),
        "SwitchOff is a function of the flow's time",
    ),
    Refusal(
        "inject_hyperparams of adamw",
        lambda: injected(optax.adamw)(learning_rate=0.1, weight_decay=OFF).init(PARAMS),
        "SwitchOff is a function of the flow's time",
    ),
    Refusal("alpha of hyperbolic_gradient", lambda: optim.hyperbolic_gradient("a"), "alpha must be a number"),
    Refusal("beta of hyperbolic_gradient", lambda: optim.hyperbolic_gradient(1.0, -1.0), "beta must be finite and"),
]

OPTIMIZERS = [
    Refusal(
        "a number for an optimizer",
        lambda: optim.coupled_weight_decay(3, 0.1),
        "takes an optax optimizer .* got 3",
    ),
    Refusal(
        "the function sgd",
        lambda: optim.decoupled_weight_decay(optax.sgd, 0.1, step_size=0.1),
        r"the function sgd itself; call it",
    ),
    Refusal(
        "hyperbolic_step of None",
        lambda: optim.hyperbolic_step(None, 1.0, step_size=0.1),
        "takes an optax optimizer",
    ),
    Refusal(
        "pilot of a string",
        lambda: optim.pilot("sgd", balance=1.0, width=0.1, t_off=1.0, step_size=0.1, mask=None),
        "takes an optax optimizer .* got 'sgd'",
    ),
    Refusal(
        "a limit below 0 of hyperbolic_step",
        lambda: optim.hyperbolic_step(SGD, step_size=0.1, limit=-1.0),
        "limit must be non-negative, got -1",
    ),
    Refusal("delta = 1 of pilot_decay", lambda: rule(delta=1.0), "delta must be above 1 and finite, got 1"),
    Refusal("delta = inf of pilot_decay", lambda: rule(delta=np.inf), "delta must be above 1 and finite, got inf"),
    Refusal("a negative alpha of pilot_decay", lambda: rule(alpha=-1.0), "alpha must be finite and non-negative"),
    Refusal("NaN for least_norm", lambda: rule(least_norm=np.nan), "least_norm must be finite and non-negative"),
    Refusal("epochs = 1.5", lambda: rule(epochs=1.5), "epochs must be a whole number of at least 1, got 1.5"),
    Refusal("no steps in an epoch", lambda: rule(steps_per_epoch=0), "steps_per_epoch must be a whole number of at"),
    Refusal("a number for accuracy", lambda: rule(accuracy=0.9), "accuracy must be a function of the parameters"),
    Refusal(
        "an accuracy a sample",
        lambda: updated(rule(accuracy=lambda params: jnp.ones(3)), (jnp.ones(2), jnp.ones(2))),
        "the accuracy must be a scalar",
    ),
    Refusal("parameters that are no pair", lambda: updated(rule(), PARAMS), r"pilot_decay follows pairs \(m, w\)"),
    Refusal("has_collapsed of another optimizer", lambda: optim.has_collapsed(SGD.init(PARAMS)), "it holds neither"),
    Refusal("current_strength of plain SGD", lambda: optim.current_strength(SGD.init(PARAMS)), "one decay .* holds 0"),
    Refusal("a learning rate 'a'", lambda: optim.switch_off_adamw("a", off_at=1), "learning_rate must be a number"),
    Refusal("a learning rate of NaN", lambda: optim.switch_off_adamw(np.nan, off_at=1), "learning_rate must be finite"),
    Refusal(
        "a negative learning rate",
        lambda: optim.switch_off_sgd(-0.1, weight_decay=0.1, off_at=1),
        "learning_rate must",
    ),
    Refusal("b1 = 2", lambda: optim.switch_off_adamw(0.1, b1=2, off_at=1), r"b1 must lie in \[0, 1\), got 2"),
    Refusal("b2 = 1", lambda: optim.switch_off_adamw(0.1, b2=1.0, off_at=1), r"b2 must lie in \[0, 1\), got 1"),
    Refusal("b2 = 'a'", lambda: optim.switch_off_adamw(0.1, b2="a", off_at=1), "b2 must be a number"),
    Refusal("eps < 0", lambda: optim.switch_off_adamw(0.1, eps=-1.0, off_at=1), "eps must be finite and non-negative"),
    Refusal("eps_root NaN", lambda: optim.switch_off_adamw(0.1, eps_root=np.nan, off_at=1), "eps_root must be finite"),
    Refusal(
        "momentum = 1",
        lambda: optim.switch_off_sgd(0.1, 1.0, weight_decay=0.1, off_at=1),
        r"momentum must lie in \[0, 1\)",
    ),
    Refusal("off_at 'a'", lambda: optim.switch_off_adamw(0.1, off_at="a"), "off_at must be a number"),
    Refusal("off_at None", lambda: optim.switch_off_adamw(0.1, off_at=None), "off_at must be a number"),
    Refusal(
        "integer parameters",
        lambda: decay(0.1, {"n": jnp.arange(3)}),
        "scheduled_weight_decay acts on floating-point .* n has",
    ),
    Refusal(
        "integer parameters, decoupled",
        lambda: updated(optim.decoupled_weight_decay(optax.identity(), 0.1, step_size=0.1), {"n": jnp.arange(3)}),
        "decoupled_weight_decay acts on floating-point tensors, n has dtype int",
    ),
    Refusal(
        "integer parameters, hyperbolic",
        lambda: updated(optim.hyperbolic_gradient(1.0), {"n": jnp.arange(3)}),
        "hyperbolic_gradient acts on floating-point tensors",
    ),
    Refusal(
        "integer parameters, hyperbolic_step",
        lambda: updated(optim.hyperbolic_step(optax.identity(), 1.0, step_size=0.1), {"n": jnp.ones((3, 2), int)}),
        "hyperbolic_step acts on floating-point tensors",
    ),
    Refusal(
        "no parameters",
        lambda: optim.hyperbolic_gradient(1.0).update(PARAMS, optim.clock.at_count(jnp.asarray(0))),
        "acts on the",
    ),
]


@table([*MASKS, *STRENGTHS, *OPTIMIZERS])
def test_refusals(row):
    row.check()


def decayed(optimizer, steps=6):
    """1 at each step that decays the weight, which starts at 1 and has no gradient."""
    params, state, moved = jnp.ones(()), None, []
    state = optimizer.init(params)
    for _ in range(steps):
        u, state = optimizer.update(jnp.zeros(()), state, params)
        moved.append(float(u) != 0)
    return moved


STEPS = np.arange(6)
RIGHTS = [
    Right(
        "steps that decay before t_off",
        lambda: (decayed(optim.decoupled_weight_decay(SGD, OFF, step_size=1e-2)), STEPS * 1e-2 < 3e-2 - 1e-9),
        rtol=0,
    ),
    Right(
        "steps that decay under inject_hyperparams",
        lambda: (
            decayed(
                injected(optim.decoupled_weight_decay, static_args=("optimizer", "alpha"))(
                    optimizer=SGD, alpha=OFF, step_size=1e-2
                )
            ),
            [True, True, True, False, False, False],
        ),
        rtol=0,
    ),
    Right(
        "the strength of a cosine at the sum of learning rates",
        lambda: (
            updated(optim.scheduled_weight_decay(mj.CosineDecay(0.5, 1.0), step_size=0.25), {"w": jnp.ones(1)}, 3)["w"],
            [2 * 0.25 * (1 + np.cos(np.pi / 2))],
        ),
        rtol=1e-12,
    ),
    Right(
        "a learning rate that turns negative, from the next step on",
        lambda: (
            [
                bool(
                    jnp.isnan(
                        updated(optim.scheduled_weight_decay(mj.SwitchOff(0.1, 9.0), step_size=rate), steps=n)["b"][0]
                    )
                )
                for n in (1, 2, 3, 4)
            ],
            [False, False, True, True],
        ),
        rtol=0,
    ),
    Right(
        "a callable tree of booleans in hyperbolic_step",
        lambda: (
            flat(optim.hyperbolic_step(optax.identity(), 0.0, 0.5, step_size=0.1, mask=FLAGS)),
            [np.expm1(-0.05)] * 2 + [0.0] * 2,
        ),
        rtol=1e-12,
    ),
    Right(
        "a callable tree of booleans in scheduled_weight_decay",
        lambda: (flat(optim.scheduled_weight_decay(0.5, mask=FLAGS)), [1.0, 1.0, 0.0, 0.0]),
        rtol=0,
    ),
    Right(
        "a callable tree of booleans in keep_zeros",
        lambda: (flat(optax.chain(optax.add_decayed_weights(1.0), optim.keep_zeros(FLAGS))), [1.0] * 4),
        rtol=0,
    ),
    Right(
        "integers that the mask leaves out",
        lambda: (
            updated(optim.scheduled_weight_decay(0.5, mask="w"), {"w": jnp.ones(1), "n": jnp.arange(1)})["w"],
            [1.0],
        ),
        rtol=0,
    ),
    Right(
        "integers that the mask of hyperbolic_step leaves out",
        lambda: (
            updated(
                optim.hyperbolic_step(optax.identity(), 0.0, 0.5, step_size=0.1, mask="w"),
                {"w": jnp.ones(1), "n": jnp.arange(1)},
            )["w"],
            [np.expm1(-0.05)],
        ),
        rtol=1e-12,
    ),
]


def rate(count):
    """0.1, 0.1 .. until the second step, which is taken by -0.1."""
    return jnp.where(count < 1, 0.1, -0.1)


def flat(transformation):
    u = updated(transformation, OF_FLAGS)
    return jnp.concatenate([u.kernel, u.bias])


@table(RIGHTS)
def test_rights(row):
    with jax.numpy_dtype_promotion("standard"):  # optax's own
        row.check()


@pytest.mark.parametrize("lr", [0, 0.0, jnp.asarray(0.1)])
def test_a_learning_rate_of_zero_is_a_frozen_run(lr):
    optim.switch_off_adamw(lr, off_at=1)
    optim.switch_off_sgd(lr, weight_decay=0.1, off_at=1)
