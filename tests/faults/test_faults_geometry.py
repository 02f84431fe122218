"""Arguments of R_a and of everything that takes one: bad ones are refused by name."""

import jax.numpy as jnp
import numpy as np
from faults_table import Refusal, table

import mirrorjax as mj
from mirrorjax.geometry import SpectralGram, SpectralProduct
from mirrorjax.geometry.numeric import NumericLegendre
from mirrorjax.geometry.registry import closed_form

U, V = jnp.array([1.3, 0.9, 1.1]), jnp.array([0.8, 1.2, 1.0])
X, MU = jnp.array([0.3, 0.2, 0.1]), jnp.array([0.02, -0.01, 0.0])
G = jnp.stack([jnp.diag(jnp.array([1.0, 2.0, 0.5])), jnp.diag(jnp.array([1.0, -1.0, 3.0]))])
EYE = jnp.eye(3)


def of(g, w0, scale=0.7):
    return mj.legendre(g, mj.Compatible(g, scale), w0)


HADAMARD = mj.legendre(mj.Hadamard(), mj.WeightDecay(0.7), (U, 0.3 * V))
SQUARE = of(mj.Square(), U)
POWER = of(mj.PowerDifference(2), (U, V))
LOG = of(mj.LogDifference(), (U + 1, V + 1))
EXP = of(mj.ExpDifference(), (U, V))
QUADRATIC = mj.legendre(mj.Quadratic(G), mj.WeightDecay(0.7), jnp.ones(3))
GRAM = SpectralGram(2 * EYE, jnp.asarray(0.7))
PRODUCT = SpectralProduct(2 * EYE, EYE, EYE, EYE, jnp.asarray(0.7))
NUMERIC = NumericLegendre(mj.Hadamard(), mj.WeightDecay(0.7), (U, 0.3 * V))
F = mj.LeastSquares(EYE[:2], jnp.ones(2))
# Depth 1 beside depth 3: each block leaks at a rate of its own.
MIXED = mj.legendre(mj.Blocks(mj.Linear(), mj.Hadamard(3)), mj.WeightDecay(0.7), (U[:1], (U[:2], V[:2], U[:2])))

# Each family and a point of it.
FAMILIES = {
    "hadamard": (HADAMARD, X),
    "square": (SQUARE, X),
    "power": (POWER, X),
    "log": (LOG, X),
    "exp": (EXP, X),
    "quadratic": (QUADRATIC, jnp.ones(2)),
    "gram": (GRAM, EYE),
    "product": (PRODUCT, EYE),
    "numeric": (NUMERIC, X),
}
# The methods, as functions of (R, point, a).
METHODS = {
    "value": lambda R, x, a: R.value(x, a),
    "mirror_map": lambda R, x, a: R.mirror_map(x, a),
    "inverse_mirror_map": lambda R, x, a: R.inverse_mirror_map(x, a),
    "dual": lambda R, x, a: R.dual(x, a),
    "primal": lambda R, x, a: R.primal(x, a),
    "potential": lambda R, x, a: R.potential(x, a),
    "weights": lambda R, x, a: R.weights(x, a),
    "hessian": lambda R, x, a: R.hessian(x, a),
    "metric_vector": lambda R, x, a: R.metric_vector(x, x, a),
    "bregman": lambda R, x, a: R.bregman(x, x, a),
    "minimizer": lambda R, x, a: R.minimizer(a),
    "dual_interval": lambda R, x, a: R.dual_interval(a),
}
SPENT = r"a must be finite and a <= 0, minus the regularization spent.* got "
STRENGTHS = [
    ("NaN", np.nan, SPENT + "nan"),
    ("inf", np.inf, SPENT + "inf"),
    ("-inf", -np.inf, SPENT + "-inf"),
    ("0.5", 0.5, SPENT + r"0\.5"),
    ("1e3", 1e3, SPENT + r"1000\.0"),
    ("an array NaN", jnp.asarray(np.nan), SPENT + "nan"),
    ("an integer 1", 1, SPENT + "1"),
    ("a complex number", 1j, "a must be real"),
    ("a boolean", True, "a must be real"),
    ("a string", "x", "a must be a number or an array of numbers, got 'x'"),
    ("None", None, "a must be a number or an array of numbers, got None"),
    ("two values", [-1.0, -2.0], r"a must be a scalar, or .* the shape \(3,\) of x, got shape \(2,\); use jax.vmap"),
    ("a matrix", -jnp.ones((3, 1)), r"a must be a scalar, or .* the shape \(3,\) of x, got shape \(3, 1\)"),
    ("NaN in a coordinate", [-1.0, np.nan, -1.0], r"a must be finite, got a\[1\] = nan"),
    ("inf in two coordinates", [-np.inf, -1.0, np.inf], r"a must be finite, got a\[0\] = -inf, and 1 more"),
]
SHAPE = r"must have the shape \(3,\) of g\(w0\), got shape "
POINTS = [
    ("shape (1,)", jnp.ones(1), SHAPE + r"\(1,\)"),
    ("shape (5,)", jnp.ones(5), SHAPE + r"\(5,\)"),
    ("shape (2, 3)", jnp.ones((2, 3)), SHAPE + r"\(2, 3\)"),
    ("a float", 0.3, SHAPE + r"\(\)"),
    ("a scalar array", jnp.asarray(0.3), SHAPE + r"\(\)"),
    ("a list of two", [0.1, 0.2], SHAPE + r"\(2,\)"),
    ("None", None, "must be a number or an array of numbers, got None"),
    ("a string", "x", "must be a number or an array of numbers, got 'x'"),
    ("strings", ["a", "b", "c"], "must be a number or an array of numbers"),
    ("complex", jnp.ones(3, complex), "must be real and floating point, got dtype complex"),
    ("boolean", jnp.ones(3, bool), "must be real and floating point, got dtype bool"),
]
NOT_FINITE = [
    ("NaN", np.nan, r"must be finite, got (x|mu)\[1\] = nan"),
    ("inf", np.inf, r"must be finite, got .* = inf"),
]


def refused(what, method, R, x, a, says):
    return Refusal(f"{what}: {method}", lambda: METHODS[method](R, x, a), says)


REFUSALS = [
    *(refused(f"a is {what}", "value", HADAMARD, X, a, says) for what, a, says in STRENGTHS),
    *(refused(f"square, a is {what}", "inverse_mirror_map", SQUARE, X, a, says) for what, a, says in STRENGTHS),
    *(refused("log, a is NaN", method, LOG, X, np.nan, SPENT + "nan") for method in METHODS),
    *(refused("power, a is 5", method, POWER, X, 5.0, SPENT + r"5\.0") for method in METHODS),
    *(refused(f"{name} of a NaN", "dual", *case, np.nan, SPENT + "nan") for name, case in FAMILIES.items()),
    *(
        refused(
            f"{name}, one a for each coordinate", "dual", *FAMILIES[name], -jnp.ones(3), rf"{says} is not a sum over"
        )
        for name, says in (("quadratic", "QuadraticLegendre"), ("gram", "SpectralGram"), ("numeric", "NumericLegendre"))
    ),
    *(refused(f"x is {what}", "value", HADAMARD, x, -0.1, "x " + says) for what, x, says in POINTS),
    *(refused(f"mu is {what}", "primal", EXP, x, -0.1, "mu " + says) for what, x, says in POINTS),
    *(
        refused(f"{name}, x of another shape", "mirror_map", R, jnp.ones(7), -0.1, "x must have the shape")
        for name, (R, _) in FAMILIES.items()
    ),
    *(
        refused(f"x holds {what}", method, HADAMARD, X.at[1].set(bad), -0.1, says)
        for what, bad, says in NOT_FINITE
        for method in ("value", "mirror_map", "inverse_mirror_map", "hessian", "bregman")
    ),
    Refusal("z of another shape", lambda: HADAMARD.bregman(X, jnp.ones(5), -0.1), "z " + SHAPE + r"\(5,\)"),
    Refusal("z is a float", lambda: HADAMARD.bregman(X, 0.3, -0.1), "z " + SHAPE),
    Refusal("v of another shape", lambda: HADAMARD.metric_vector(X, jnp.ones(5), -0.1), "v " + SHAPE),
    Refusal(
        "x is too precise", lambda: of(mj.Square(), np.float32([1.0])).value(np.float64([1.0]), 0.0), "dtype float64"
    ),
    Refusal("a and the floats", lambda: HADAMARD.value(X, -1e308), "exceeds the largest number"),
    Refusal("a and the floats of levels", lambda: POWER.value(X, -1e308), "exceeds the largest number"),
    Refusal("x overflows", lambda: HADAMARD.inverse_mirror_map(1e4 * jnp.ones(3), -0.1), r"exceeds .*mu\[0\] = 10000"),
    Refusal("x outside", lambda: SQUARE.mirror_map(-X, -0.1), r"outside the range .*x\[0\] = -0\.3, and 2 more"),
    Refusal(
        "mu outside", lambda: LOG.inverse_mirror_map(50 * MU + 5, -0.1), r"outside the dual interval .*mu\[0\] = 6"
    ),
    Refusal("range exhausted", lambda: LOG.value(X, -50.0), "past the strength at which"),
    Refusal(
        "x that does not commute", lambda: of_gram().value(jnp.ones((2, 2)) + jnp.eye(2), -0.1), "outside the range"
    ),
    # legendre and its constructors
    Refusal(
        "strings as w0", lambda: mj.legendre(mj.Square(), mj.WeightDecay(), ["a", "b"]), "must be a number or an arr"
    ),
    Refusal(
        "NaN in w0", lambda: of(mj.Hadamard(), (U.at[1].set(jnp.nan), V)), r"w0 must be finite, got w0\[0\]\[1\] = nan"
    ),
    Refusal("inf in w0", lambda: of(mj.Square(), U.at[2].set(jnp.inf)), r"w0 must be finite, got w0\[2\] = inf"),
    Refusal(
        "NaN in w0 of a closed form", lambda: closed_form(mj.Square(), mj.WeightDecay(), jnp.nan * U), "must be finite"
    ),
    Refusal("no weights", lambda: mj.legendre(mj.Square(), mj.WeightDecay(), jnp.zeros(0)), "w0 must hold weights"),
    Refusal("h is None", lambda: mj.legendre(mj.Square(), None, U), "h must be a regularizer such as .* got None"),
    Refusal("h is a number", lambda: mj.legendre(mj.Square(), 0.5, U), r"h must be a regularizer such as .* got 0\.5"),
    Refusal(
        "h is a class", lambda: mj.legendre(mj.Square(), mj.WeightDecay, U), r"the class WeightDecay itself; call it"
    ),
    Refusal("g is a class", lambda: mj.legendre(mj.Square, mj.WeightDecay(), U), r"the class Square itself; call it"),
    Refusal("g is a string", lambda: mj.legendre("square", mj.WeightDecay(), U), "g must be a reparameterization"),
    Refusal(
        "an unknown method", lambda: mj.legendre(mj.Square(), mj.WeightDecay(), U, method="x"), "method must be one of"
    ),
    Refusal(
        "rtol is NaN", lambda: NumericLegendre(mj.Square(), mj.WeightDecay(), U, rtol=np.nan), "rtol must be positive"
    ),
    Refusal(
        "rtol is a string", lambda: NumericLegendre(mj.Square(), mj.WeightDecay(), U, rtol="a"), "rtol must be a number"
    ),
    Refusal("scale of Gram", lambda: SpectralGram(EYE, "a"), "scale must be a number or an array of numbers, got 'a'"),
    Refusal("scale of Gram is NaN", lambda: SpectralGram(EYE, np.nan), "scale must be finite, got nan"),
    Refusal("a vector for Gram", lambda: SpectralGram(jnp.ones(3), 1.0), r"U0 must be a matrix, got shape \(3,\)"),
    Refusal("NaN for Gram", lambda: SpectralGram(EYE * jnp.nan, 1.0), "U0 must be finite"),
    Refusal(
        "shapes of Product", lambda: SpectralProduct(jnp.eye(4), EYE, EYE, EYE, 1.0), r"needs first \(r, n\).*\(4, 4\)"
    ),
    Refusal("NaN for Product", lambda: SpectralProduct(EYE * jnp.nan, EYE, EYE, EYE, 1.0), "first must be finite"),
    Refusal("scale of Product", lambda: SpectralProduct(2 * EYE, EYE, EYE, EYE, "a"), "scale must be a number"),
    # limit
    Refusal("limit, a string as rtol", lambda: mj.predict_limit(HADAMARD, F, -1.0, rtol="a"), "rtol must be a number"),
    Refusal("limit, NaN as rtol", lambda: mj.predict_limit(HADAMARD, F, -1.0, rtol=np.nan), "rtol must be finite"),
    Refusal("limit, inf as atol", lambda: mj.predict_limit(HADAMARD, F, -1.0, atol=np.inf), "atol must be finite"),
    Refusal(
        "limit, steps", lambda: mj.predict_limit(HADAMARD, F, -1.0, max_steps="a"), "max_steps must be a whole number"
    ),
    Refusal(
        "limit, NaN steps", lambda: mj.predict_limit(HADAMARD, F, -1.0, max_steps=np.nan), "max_steps must be a whole"
    ),
    Refusal("limit, R is None", lambda: mj.predict_limit(None, F, -1.0), "R must be a Legendre function, .* got None"),
    Refusal("limit, R is a class", lambda: mj.predict_limit(SpectralGram, F, -1.0), "the class SpectralGram itself"),
    Refusal(
        "limit, a rate for each coordinate",
        lambda: mj.predict_limit(MIXED, F, -1.0),
        r"BlocksLegendre leaks at several rates .* shape \(3,\).* pass start=, the point x at which the decay is switc",
    ),
    Refusal("limit, no objective", lambda: mj.predict_limit(HADAMARD, None, -1.0), "objective must be an objective"),
    Refusal("limit, a is a string", lambda: mj.predict_limit(HADAMARD, F, "a"), "a must be a number"),
    Refusal("limit, two strengths", lambda: mj.predict_limit(HADAMARD, F, [-1.0, -2.0]), r"got shape \(2,\)"),
    Refusal("limit, start", lambda: mj.predict_limit(HADAMARD, F, -1.0, start=jnp.ones(5)), "start " + SHAPE),
    Refusal("limit, NaN start", lambda: mj.predict_limit(HADAMARD, F, -1.0, start=X * np.nan), "start must be finite"),
    Refusal("limit, a is NaN", lambda: mj.predict_limit(HADAMARD, F, np.nan), SPENT),
    Refusal("kkt, a is NaN", lambda: mj.kkt_residual(HADAMARD, F, X, np.nan), SPENT),
    Refusal(
        "kkt, x is NaN", lambda: mj.kkt_residual(HADAMARD, F, X * jnp.nan, -1.0), r"x must be finite, got x\[0\] = nan"
    ),
    Refusal("kkt, start", lambda: mj.kkt_residual(HADAMARD, F, X, -1.0, start=0.5), "start " + SHAPE),
    Refusal(
        "kkt, start outside", lambda: mj.kkt_residual(SQUARE, F, X, -1.0, start=-X), r"outside .*start\[0\] = -0\.3"
    ),
    Refusal("kkt, x of another shape", lambda: mj.kkt_residual(HADAMARD, F, jnp.ones(5), -1.0), "x " + SHAPE),
    Refusal("kkt, x of shape (1,)", lambda: mj.kkt_residual(HADAMARD, F, jnp.ones(1), -1.0), "x " + SHAPE),
    # effects
    Refusal("effects, strings", lambda: mj.effects(HADAMARD, ["a"], 1.0), "a_values must be a number or an array"),
    Refusal("effects, None", lambda: mj.effects(HADAMARD, None, 1.0), "a_values must be a number or an array"),
    Refusal("effects, a scalar", lambda: mj.effects(HADAMARD, -1.0, 1.0), "a_values must be one axis"),
    Refusal(
        "effects, arrays",
        lambda: mj.effects(HADAMARD, -np.ones((2, 2)), 1.0),
        r"one axis of arrays of the shape \(3,\)",
    ),
    Refusal("effects, matrices", lambda: mj.effects(GRAM, -np.ones((2, 3, 3)), 1.0), r"a <= 0, got shape \(2, 3, 3\)"),
    Refusal("effects, NaN in an array", lambda: mj.effects(HADAMARD, [[-1, -1, np.nan]], 1.0), r"got a\[0, 2\] = nan"),
    Refusal("effects, NaN", lambda: mj.effects(HADAMARD, [-1.0, np.nan], 1.0), SPENT),
    Refusal("effects, a positive a", lambda: mj.effects(HADAMARD, [-1.0, 1.0], 1.0), SPENT),
    Refusal("effects, scale 'a'", lambda: mj.effects(HADAMARD, [-1.0], "a"), "scale must be a number"),
    Refusal("effects, scale None", lambda: mj.effects(HADAMARD, [-1.0], None), "scale must be a number"),
    Refusal("effects, two scales", lambda: mj.effects(HADAMARD, [-1.0], [1.0, 2.0]), "scale must be a scalar"),
    Refusal(
        "effects, scale 0", lambda: mj.effects(HADAMARD, [-1.0], 0.0), "scale must be positive and finite, got 0.0; it"
    ),
    Refusal("effects, scale inf", lambda: mj.effects(HADAMARD, [-1.0], np.inf), "scale must be positive and finite"),
    Refusal("effects, direction", lambda: mj.effects(HADAMARD, [-1.0], 1.0, jnp.ones(5)), "direction " + SHAPE),
    Refusal(
        "effects, a string", lambda: mj.effects(HADAMARD, [-1.0], 1.0, "a"), "direction must be a number or an array"
    ),
    Refusal(
        "effects, no direction", lambda: mj.effects(HADAMARD, [-1.0], 1.0, jnp.zeros(3)), "direction must not be 0"
    ),
    Refusal("effects, R is None", lambda: mj.effects(None, [-1.0], 1.0), "R must be a Legendre function"),
    Refusal("exponent, two strengths", lambda: mj.local_exponent(HADAMARD, [-1.0, -2.0], 1.0), "a must be a scalar"),
    Refusal("exponent, a is NaN", lambda: mj.local_exponent(HADAMARD, np.nan, 1.0), SPENT),
    Refusal(
        "explain, one time", lambda: mj.explain(HADAMARD, mj.Constant(0.1), 1.0, 1.0), r"ts must be one axis .* \[t\]"
    ),
    Refusal(
        "explain, a number", lambda: mj.explain(HADAMARD, 0.1, [1.0], 1.0), r"schedule must be a schedule .* got 0\.1"
    ),
    Refusal("explain, NaN", lambda: mj.explain(HADAMARD, mj.Constant(0.1), [np.nan], 1.0), "ts must be finite"),
    Refusal(
        "explain, a negative time", lambda: mj.explain(HADAMARD, mj.Constant(0.1), [-1.0], 1.0), "ts must be finite"
    ),
    # conditions and design
    Refusal(
        "check, radius None", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, radius=None), "radius must be a number"
    ),
    Refusal(
        "check, radius 'a'", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, radius="a"), "radius must be a number"
    ),
    Refusal(
        "check, radius NaN",
        lambda: mj.check(mj.Square(), mj.WeightDecay(), U, radius=np.nan),
        "radius must lie between",
    ),
    Refusal(
        "check, tolerance inf",
        lambda: mj.check(mj.Square(), mj.WeightDecay(), U, tolerance=np.inf),
        "tolerance must be",
    ),
    Refusal(
        "check, tolerance NaN",
        lambda: mj.check(mj.Square(), mj.WeightDecay(), U, tolerance=np.nan),
        "tolerance must be",
    ),
    Refusal(
        "check, tolerance 0", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, tolerance=0.0), "tolerance must be"
    ),
    Refusal(
        "check, tolerance -1", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, tolerance=-1.0), "tolerance must be"
    ),
    Refusal("check, tolerance 1", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, tolerance=1.0), "largest bracket"),
    Refusal(
        "check, key 3", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, key=3), "key must be one random key.* got 3"
    ),
    Refusal("check, no weights", lambda: mj.check(mj.Square(), mj.WeightDecay(), jnp.zeros(0)), "w must hold weights"),
    Refusal("check, NaN weights", lambda: mj.check(mj.Square(), mj.WeightDecay(), U * jnp.nan), "w must be finite"),
    Refusal("check, g None", lambda: mj.check(None, mj.WeightDecay(), U), "g must be a reparameterization"),
    Refusal("check, h None", lambda: mj.check(mj.Square(), None, U), "h must be a regularizer"),
    Refusal(
        "check, points 'a'", lambda: mj.check(mj.Square(), mj.WeightDecay(), U, points="a"), "points must be a whole"
    ),
    Refusal("design, a class", lambda: mj.compatible_regularizers(mj.Hadamard), "the class Hadamard itself; call it"),
    Refusal("design, None", lambda: mj.compatible_regularizers(None), "g must be a reparameterization"),
    Refusal("clock, R None", lambda: mj.clock(None, -1.0), "R must be a Legendre function"),
    Refusal("clock, a positive", lambda: mj.clock(HADAMARD, 1.0), SPENT),
    Refusal(
        "remaining time, slope -1",
        lambda: mj.remaining_time(HADAMARD, X, MU, -1.0, -1.0),
        "slope must be non-negative, got",
    ),
    Refusal(
        "remaining time, shape of slope",
        lambda: mj.remaining_time(HADAMARD, X, MU, -1.0, jnp.ones(2)),
        r"slope must have the shape \(3,\) of g\(w0\), got shape \(2,\)",
    ),
    Refusal(
        "remaining time, shape of x", lambda: mj.remaining_time(HADAMARD, X[:2], MU, -1.0, 1.0), "x must have the shape"
    ),
    Refusal("strength bound, slope NaN", lambda: mj.strength_bound(HADAMARD, np.nan), "slope must be non-negative"),
    Refusal("critical strength, depth 1", lambda: mj.critical_strength(1, 1.0), "depth must be a whole number"),
    Refusal(
        "critical strength, curvature 0", lambda: mj.critical_strength(3, 1.0, curvature=0.0), "curvature must be posi"
    ),
    Refusal("critical strength, scale -1", lambda: mj.critical_strength(3, 1.0, scale=-1.0), "scale must be positive"),
    Refusal(
        "design, no matrix", lambda: mj.compatible_regularizers(mj.Quadratic(jnp.zeros((0, 3, 3)))), "at least one"
    ),
]


def of_gram():
    return SpectralGram(jnp.diag(jnp.array([1.0, 2.0])), 1.0)


@table(REFUSALS)
def test_refusals(row):
    row.check()
