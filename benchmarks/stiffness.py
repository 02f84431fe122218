"""What limits the steps of a flow: stability or accuracy? And what would a stabilized method of fourth order cost?

With rho the spectral radius of the Jacobian, an explicit method is stable for steps `h <= beta / rho`; steps near that
are as short as they are for stability. Kvaerno4, which is implicit and stable at any h, shows the steps that accuracy
alone asks of a fourth-order pair; ROCK4 would take them with `s >= sqrt(h rho / 0.35)` evaluations each (Abdulle 2002).
"""

from functools import partial
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from work_problems import Setting, relative_errors

POWER_ITERATIONS = 30
NEAR = 0.8  # a step beyond this share of the interval of stability counts as limited by it
MAX_STEPS = 20_000
LARGEST, LARGEST_IMPLICIT = 1000, 450  # numbers in the state: an implicit step factorizes a matrix of that size
ROCK4_FACTOR, ROCK4_FEWEST, SAFETY = 0.35, 5, 1.2


def stability_interval(solver: diffrax.AbstractERK) -> float:
    """The largest beta for which `|R(z)| <= 1` on [-beta, 0], R the stability polynomial of the tableau."""
    tableau: Any = solver.tableau
    stages = tableau.num_stages
    A = np.zeros((stages, stages))
    for row, entries in enumerate(tableau.a_lower, start=1):
        A[row, : len(entries)] = entries
    z = -np.linspace(0.0, 20.0, 20_001)[1:]
    identity, ones = np.eye(stages), np.ones(stages)
    R = np.array([1 + value * tableau.b_sol @ np.linalg.solve(identity - value * A, ones) for value in z])
    return float(-z[np.argmax(np.abs(R) > 1 + 1e-9)])


def spectral_radius(field: Any, y: Any) -> Array:
    """The largest |eigenvalue| of the Jacobian at y, by power iteration from fixed noise: a few percent too small."""
    flat, unflatten = ravel_pytree(y)
    _, product = jax.linearize(lambda flat: ravel_pytree(field(unflatten(flat)))[0], flat)
    start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def iterate(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        vector = carry[0]
        image = product(vector)
        size = jnp.linalg.norm(image)
        return image / size, size / jnp.linalg.norm(vector)

    return jax.lax.fori_loop(0, POWER_ITERATIONS, iterate, (start, jnp.zeros((), flat.dtype)))[1]


@eqx.filter_jit
def steps_taken(setting: Setting, solver: Any, rtol: Array) -> tuple[Any, Any, Any, Array]:
    """Ends of the accepted steps from t = 0, spectral radii there, x at the setting's times, and the rejected steps."""
    problem, w0 = setting.make(jnp.float64)
    motion = setting.flow.prepare(problem, w0)
    state = motion.initial()

    def velocity(t: Any, y: Any) -> Any:
        return motion.velocity(jnp.asarray(t), y)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: velocity(t, y)),
        solver,
        t0=0.0,
        t1=setting.t1,
        dt0=None,
        y0=state,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(t0=True, steps=True, fn=lambda t, y, args: spectral_radius(partial(velocity, t), y)),
                diffrax.SubSaveAt(ts=setting.times, fn=lambda t, y, args: motion.read(t, y).x),
            ]
        ),
        stepsize_controller=diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=rtol, atol=rtol / 100), jump_ts=problem.schedule.breakpoints
        ),
        max_steps=MAX_STEPS,
        throw=False,
    )
    ts, ys = cast(tuple, solution.ts), cast(tuple, solution.ys)
    return ts[0], ys[0], ys[1], solution.stats["num_rejected_steps"]


def size(setting: Setting) -> int:
    """How many numbers the state of the flow holds."""
    problem, w0 = setting.make(jnp.float64)
    return sum(leaf.size for leaf in jax.tree.leaves(setting.flow.prepare(problem, w0).initial()))


def stiffness(setting: Setting, rtol: float, truth: np.ndarray) -> dict[str, Any]:
    """The share of Tsit5's steps that stability limits, what ROCK4 would need on the steps of Kvaerno4, and the errors
    that these lead to."""
    h, z, _, rejected = steps(setting, diffrax.Tsit5(), rtol)
    beta = stability_interval(diffrax.Tsit5())
    found = {
        "problem": setting.name,
        "rtol": rtol,
        "tsit5_steps": int(h.size + rejected),
        "tsit5_limited_by_stability": float(np.mean(z >= NEAR * beta)),
    }
    if size(setting) > LARGEST_IMPLICIT:
        return found
    h, z, x, rejected = steps(setting, diffrax.Kvaerno4(), rtol)
    stages = np.maximum(ROCK4_FEWEST, np.ceil(np.sqrt(SAFETY * z / ROCK4_FACTOR)))
    accepted = float(np.sum(stages + 2))  # one for the embedded error, one product for the spectral radius
    return found | {
        "kvaerno4_steps": int(h.size + rejected),
        "rock4_evaluations": round(accepted * (1 + rejected / h.size)),
        **relative_errors(x, truth),
    }


def steps(setting: Setting, solver: Any, rtol: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """h and h rho of the accepted steps, rho the larger of its two ends; x; and the number of rejected ones."""
    t, radius, x, rejected = (np.asarray(value) for value in steps_taken(setting, solver, jnp.asarray(rtol)))
    kept = np.isfinite(t)
    t, radius = t[kept], radius[kept]
    return np.diff(t), np.diff(t) * np.maximum(radius[1:], radius[:-1]), x, int(rejected)


def stiffness_table(records: list[dict[str, Any]]) -> str:
    """One row a problem and tolerance."""
    rows = [
        "| problem | rtol | steps of Tsit5 | limited by stability | steps of Kvaerno4 | ROCK4 on these | their error |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        implicit = "- | - | -"
        if "kvaerno4_steps" in r:
            implicit = f"{r['kvaerno4_steps']} | {r['rock4_evaluations']} | {r['error_transient']:.1e}"
        share = f"{r['tsit5_limited_by_stability']:.0%}"
        rows.append(f"| {r['problem']} | {r['rtol']:.0e} | {r['tsit5_steps']} | {share} | {implicit} |")
    return "\n".join(rows)
