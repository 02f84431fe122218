"""Where a lane of a sweep stands, and what it leaves: what segments hand on, and what a sweep keeps."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..results import RESULTS


class Progress(eqx.Module):
    """Where a lane stands: all that is needed to go on as if it had never stopped.

    - `tick`: time on the solver's clock; `state`: the flow's state there; `carried`: of solver and controller.
    - `saved`: how many save times are behind; `metrics` and `loss` (time, ...) there, NaN at those ahead.
    - `steps`, `rejected_steps`: solver steps so far. `work`: what a batch does once for all lanes, so far: steps, or
      evaluations of the velocity where lanes take their stages apart.
    - `running`: whether there is more to do; if not, `result` says how it ended, and `tick` when.
    """

    tick: Float[Array, ""]
    state: PyTree
    carried: PyTree
    saved: Int[Array, ""]
    metrics: PyTree
    loss: Float[Array, " time"]
    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    work: Int[Array, ""]
    running: Bool[Array, ""]
    result: RESULTS


class Outcome(eqx.Module):
    """What is kept of a lane that has ended: parameters `x` at `t_end`, missing if it failed; `a`, `loss` and `metrics`
    at the save times, missing at those it never reached."""

    x: Float[Array, "..."]
    a: Float[Array, " time"]
    loss: Float[Array, " time"]
    metrics: PyTree
    t_end: Float[Array, ""]
    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    result: RESULTS
