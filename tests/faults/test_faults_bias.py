"""Bad arguments of read_bias, of a point and of a network, and of track_bias."""

import jax
import jax.numpy as jnp
import optax
from faults_table import Refusal, table

import mirrorjax as mj
from mirrorjax import nn, optim

G, H = mj.Hadamard(), mj.WeightDecay()
ONE, HALF = jnp.ones(3), jnp.full(3, 0.5)
START, END = (ONE, jnp.zeros(3)), (HALF, jnp.full(3, 0.1))
SGD = optax.sgd(0.1)


def single(g, h=H, count=1):
    w0 = ONE if count == 1 else count * (ONE,)
    return lambda: mj.read_bias(g, h, w0, w0)


READ = [
    Refusal("Square", single(mj.Square()), "Square has one weight a coordinate, which cannot tell mu from a"),
    Refusal("Linear", single(mj.Linear()), "Linear has one weight a coordinate"),
    Refusal("depth 3", single(mj.Hadamard(3), count=3), r"and Hadamard has 3: .* look at log\|gap / gap0\| / \(4c\)"),
    Refusal(
        "Gram",
        lambda: mj.read_bias(mj.Gram(), H, jnp.eye(2), jnp.eye(2)),
        "acts coordinate by coordinate, which Gram does not: .* compare spectra",
    ),
    Refusal("Custom", lambda: mj.read_bias(mj.Custom(lambda w: w[0] * w[1]), H, START, END), "which Custom does not"),
    Refusal("L1", lambda: mj.read_bias(G, mj.L1(), START, END), "no formula for Hadamard with L1"),
    Refusal(
        "LogDifference with weight decay",
        lambda: mj.read_bias(mj.LogDifference(), H, (ONE, ONE), (ONE, ONE)),
        r"no formula for LogDifference with WeightDecay; .* Compatible\(g\)",
    ),
    Refusal("scale 0", lambda: mj.read_bias(G, mj.WeightDecay(0.0), START, END), "scale 0, so that no a acts"),
    Refusal("a list for a tuple", lambda: mj.read_bias(G, H, START, [HALF, HALF]), r"w must be built like w0, .* got"),
    Refusal("the product alone", lambda: mj.read_bias(G, H, START, HALF), "w must be built like w0"),
    Refusal(
        "several runs",
        lambda: mj.read_bias(G, H, START, (jnp.ones((2, 3)), jnp.ones((2, 3)))),
        r"shapes \(3,\), \(3,\) of w0, got \(2, 3\), \(2, 3\); use jax.vmap",
    ),
    Refusal("integers", lambda: mj.read_bias(G, H, START, (jnp.ones(3, int), jnp.ones(3, int))), "floating-point"),
    Refusal("w0 with NaN", lambda: mj.read_bias(G, H, (ONE, jnp.nan * ONE), END), r"w0 must be finite, got w0\[1\]"),
    Refusal("w0 of three arrays", lambda: mj.read_bias(G, H, (ONE, ONE, ONE), END), "a tuple of 2 arrays"),
    Refusal("the class Hadamard", lambda: mj.read_bias(mj.Hadamard, H, START, END), "the class Hadamard itself"),
    Refusal("h = 3", lambda: mj.read_bias(G, 3, START, END), "h must be a regularizer"),
]

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
SPLIT, WEIGHTS = nn.reparameterize(PARAMS, {"kernel": mj.Hadamard()})
SQUARES, ROOTS = nn.reparameterize(PARAMS, {"kernel": mj.Square()})
NETWORK = [
    Refusal("the tensors of the model", lambda: nn.read_bias(SPLIT, WEIGHTS, PARAMS), "weights: kernel is written by"),
    Refusal("another tree", lambda: nn.read_bias(SPLIT, {"kernel": ONE}, WEIGHTS), "weights0: the weights must be the"),
    Refusal("no pairs", lambda: nn.read_bias(SQUARES, ROOTS, ROOTS), "no tensor .* the rules are Square"),
    Refusal("L1 in a network", lambda: nn.read_bias(SPLIT, WEIGHTS, WEIGHTS, mj.L1()), "kernel: read_bias has no"),
    Refusal("a tree for the split", lambda: nn.read_bias(PARAMS, WEIGHTS, WEIGHTS), "split must be what reparam"),
]


def track(optimizer=SGD, alpha=0.1, *, params=START, mean=None, coupled=True, **how):
    tracked = optim.track_bias(optimizer, alpha, coupled=coupled, **how)
    state = tracked.init(params)
    return tracked.update(jax.tree.map(jnp.zeros_like, params), state, params, mean_gradient=mean)


TRACK = [
    Refusal("optax.sgd itself", lambda: track(optax.sgd), "takes an optax optimizer, got the function sgd itself"),
    Refusal("alpha < 0", lambda: track(alpha=-1.0), "alpha must be finite and non-negative"),
    Refusal("coupled = 1", lambda: track(coupled=1), "coupled of track_bias must be True or False, got 1"),
    Refusal("noise = 'yes'", lambda: track(noise="yes"), "noise of track_bias must be True or False, got 'yes'"),
    Refusal("decoupled without a rate", lambda: track(coupled=False), "give track_bias step_size"),
    Refusal("a schedule without a rate", lambda: track(alpha=mj.SwitchOff(0.1, 1.0)), "give step_size"),
    Refusal("no mean gradient", lambda: track(noise=True), "needs the mean gradient of each step"),
    Refusal("a mean gradient for nothing", lambda: track(mean=START), "build it with noise=True"),
    Refusal("no parameters", lambda: optim.track_bias(SGD, 0.1, coupled=True).update(START, None), "acts on the param"),
    Refusal("a dict", lambda: track(params={"m": ONE, "w": ONE}), r"follows pairs \(m, w\) .* got a dict"),
    Refusal("two shapes", lambda: track(params=(ONE, jnp.ones(2))), r"got a tuple of shapes \[\(3,\), \(2"),
    Refusal("one array of a pair", lambda: track(pairs=(True, False)), "follows pairs"),
    Refusal("pairs of another tree", lambda: track(pairs={"a": True}), "no parameter is at 'a'"),
    Refusal("a state without parts", lambda: optim.accumulated_bias(SGD.init(START)), "holds 0"),
]


@table([*READ, *NETWORK, *TRACK])
def test_refused(row):
    row.check()
