"""The sweep of `sensing.py` by the means of other packages, each written as its own users would.

Every function takes a case and strengths, and returns a way to run: no arguments, (X at the end, evaluations a lane).
Packages are imported by name where they are used: one that is absent costs its own rows only.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from sensing import HORIZON, STEP, TOTAL, Case

Run = Callable[[], tuple[np.ndarray, float]]
STEPS = round(HORIZON / STEP)
RTOL, ATOL = 1e-4, 1e-6


def torch_descent(case: Case, alphas: np.ndarray) -> Run:
    """Gradient descent by autograd and SGD, one lane, the weight decay of the optimizer switched off on the way."""
    torch = import_module("torch")

    A, y, (alpha,) = torch.tensor(case.dense), torch.tensor(case.y), alphas

    def run() -> tuple[np.ndarray, float]:
        U = torch.eye(case.n, requires_grad=True)
        optimizer = torch.optim.SGD([U], lr=STEP, weight_decay=2 * alpha)
        for step in range(STEPS):
            if step * STEP >= TOTAL / alpha:
                optimizer.param_groups[0]["weight_decay"] = 0.0
            optimizer.zero_grad()
            residual = A @ (U @ U.T).reshape(-1) - y
            loss = (residual @ residual) / (2 * y.numel())
            loss.backward()
            optimizer.step()
        return (U @ U.T).detach().numpy()[None], STEPS

    return run


def torch_analytic(case: Case, alphas: np.ndarray) -> Run:
    """The same without autograd: `grad = 2 G U`, G = A^T r / m."""
    torch = import_module("torch")

    A, y, (alpha,) = torch.tensor(case.dense), torch.tensor(case.y), alphas

    @torch.no_grad()
    def run() -> tuple[np.ndarray, float]:
        U = torch.eye(case.n)
        for step in range(STEPS):
            residual = torch.addmv(y, A, (U @ U.T).view(-1), beta=-1)
            G = torch.mv(A.T, residual).view(case.n, case.n)
            decay = alpha if step * STEP < TOTAL / alpha else 0.0
            U = torch.addmm(U, G, U, beta=1 - 2 * STEP * decay, alpha=-2 * STEP / y.numel())
        return (U @ U.T).numpy()[None], STEPS

    return run


def torch_batched(case: Case, alphas: np.ndarray) -> Run:
    """The same for all lanes at once, with packed A: the best that descent with this step is likely to get."""
    torch = import_module("torch")

    A, y, n = torch.tensor(case.packed), torch.tensor(case.y), case.n
    rows, columns = torch.triu_indices(n, n)
    half = torch.where(rows == columns, 1.0, 0.5)
    strength, t_off = (torch.tensor(values, dtype=torch.float32) for values in (alphas, TOTAL / alphas))

    @torch.no_grad()
    def run() -> tuple[np.ndarray, float]:
        U = torch.eye(n).repeat(alphas.size, 1, 1)
        G = torch.empty_like(U)
        for step in range(STEPS):
            residual = torch.addmm(y, (U @ U.mT)[:, rows, columns], A.T, beta=-1)
            packed = (residual @ A) * half
            G[:, rows, columns] = packed
            G[:, columns, rows] = packed
            keep = 1 - 2 * STEP * torch.where(step * STEP < t_off, strength, 0.0)
            U = torch.baddbmm(keep[:, None, None] * U, G, U, alpha=-2 * STEP / y.numel())
        return (U @ U.mT).numpy(), STEPS

    return run


def torch_velocity(case: Case, alphas: np.ndarray) -> tuple[Callable, list[int]]:
    """`dU/dt` for a batch of lanes (lanes, n^2), dense A, and a list that grows by one a call."""
    torch = import_module("torch")

    A, y = torch.tensor(case.dense), torch.tensor(case.y)
    strength, t_off = (torch.tensor(values, dtype=torch.float32) for values in (alphas, TOTAL / alphas))
    calls: list[int] = []

    def velocity(t: Any, U: Any) -> Any:
        calls.append(1)
        V = U.view(-1, case.n, case.n)
        residual = ((V @ V.mT).flatten(1) @ A.T - y) / y.numel()
        G = (residual @ A).view_as(V)
        decay = torch.where(t < t_off, strength, 0.0)
        return (-2 * (G @ V + decay[:, None, None] * V)).view_as(U)

    return velocity, calls


def torchdiffeq_dopri5(case: Case, alphas: np.ndarray) -> Run:
    """One step size for all lanes, their jumps declared."""
    torch, odeint = import_module("torch"), import_module("torchdiffeq").odeint

    (velocity, calls), start = torch_velocity(case, alphas), torch.eye(case.n).repeat(alphas.size, 1, 1).flatten(1)

    @torch.no_grad()
    def run() -> tuple[np.ndarray, float]:
        calls.clear()
        options = {"jump_t": torch.tensor(np.sort(TOTAL / alphas), dtype=torch.float32)}
        ts = torch.tensor([0.0, HORIZON])
        U = odeint(velocity, start, ts, rtol=RTOL, atol=ATOL, method="dopri5", options=options)[-1]
        U = U.view(-1, case.n, case.n)
        return (U @ U.mT).numpy(), len(calls)

    return run


def torchode_tsit5(case: Case, alphas: np.ndarray) -> Run:
    """A step size a lane; it knows no jumps."""
    torch, torchode = import_module("torch"), import_module("torchode")

    (velocity, calls), start = torch_velocity(case, alphas), torch.eye(case.n).repeat(alphas.size, 1, 1).flatten(1)
    term = torchode.ODETerm(velocity)
    controller = torchode.IntegralController(atol=ATOL, rtol=RTOL, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)
    zeros = torch.zeros(alphas.size)

    @torch.no_grad()
    def run() -> tuple[np.ndarray, float]:
        problem = torchode.InitialValueProblem(y0=start, t_start=zeros, t_end=zeros + HORIZON)
        calls.clear()
        solution = solver.solve(problem)
        if (solution.status != 0).any():
            raise RuntimeError(f"torchode gave up with the statuses {solution.status.tolist()}")
        U = solution.ys[:, -1].view(-1, case.n, case.n)
        return (U @ U.mT).numpy(), len(calls)

    return run


def scipy_rk45(case: Case, alphas: np.ndarray) -> Run:
    """One lane in float64, which is scipy's only precision, restarted by hand at the jump."""
    from scipy.integrate import solve_ivp

    A, y, n, (alpha,) = case.dense.astype(float), case.y.astype(float), case.n, alphas

    def velocity(t: float, u: np.ndarray, decay: float) -> np.ndarray:
        U = u.reshape(n, n)
        residual = (A @ (U @ U.T).ravel() - y) / y.size
        return (-2 * ((A.T @ residual).reshape(n, n) @ U + decay * U)).ravel()

    def run() -> tuple[np.ndarray, float]:
        u, calls = np.eye(n).ravel(), 0
        for span, decay in (((0.0, TOTAL / alpha), alpha), ((TOTAL / alpha, HORIZON), 0.0)):
            piece = solve_ivp(velocity, span, u, method="RK45", rtol=RTOL, atol=ATOL, args=(decay,))
            u, calls = piece.y[:, -1], calls + piece.nfev
        U = u.reshape(n, n)
        return (U @ U.T)[None], calls

    return run


def diffrax_vmap(case: Case, alphas: np.ndarray, packed: bool) -> Run:
    """`jax.vmap(diffrax.diffeqsolve)` of dU/dt by Tsit5 in float32, the jump of each lane declared."""
    n, y = case.n, jnp.asarray(case.y)
    A = jnp.asarray(case.packed if packed else case.dense)
    rows, columns = np.triu_indices(n)
    place = np.zeros((n, n), int)
    place[rows, columns] = place[columns, rows] = np.arange(rows.size)
    half = np.where(rows == columns, 1.0, 0.5).astype(np.float32)

    def velocity(t, U, args):
        A, alpha, t_off = args
        X = U @ U.T
        residual = (A @ (X[rows, columns] if packed else X.reshape(-1)) - y) / y.size
        G = ((residual @ A) * half)[place] if packed else (residual @ A).reshape(n, n)
        return -2 * (G @ U + jnp.where(t < t_off, alpha, 0.0) * U)

    def solve(A, alpha, t_off, t1):
        control = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=RTOL, atol=ATOL), jump_ts=t_off[None])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            jnp.zeros_like(t1),
            t1,
            None,
            jnp.eye(n, dtype=jnp.float32),
            args=(A, alpha, t_off),
            stepsize_controller=control,
            max_steps=100_000,
            throw=False,
        )
        U: Any = solution.ys
        return U[-1] @ U[-1].T, solution.stats["num_steps"]

    lanes = [jnp.asarray(values, jnp.float32) for values in (alphas, TOTAL / alphas)]
    arguments = A, *lanes, jnp.asarray(HORIZON, jnp.float32)
    compiled = jax.jit(jax.vmap(solve, in_axes=(None, 0, 0, None))).lower(*arguments).compile()

    def run() -> tuple[np.ndarray, float]:
        X, steps = jax.block_until_ready(compiled(*arguments))
        return np.asarray(X), 6 * float(np.mean(steps))

    return run


def jaxopt_mirror_descent(case: Case, alphas: np.ndarray) -> Run:
    """Mirror descent on X by jaxopt, entropy of the spectrum: `log X <- log X - 4 eta (grad f(X) + alpha I)`.

    The mirror flow of U U^T if the A_i commuted (the paper's Eq. 17). They do not, so it ends elsewhere than the flow.
    """
    jaxopt = import_module("jaxopt")

    A, y, n, (alpha,) = jnp.asarray(case.dense), jnp.asarray(case.y), case.n, alphas

    def matrix_log(X):
        values, vectors = jnp.linalg.eigh(X)
        return (vectors * jnp.log(jnp.maximum(values, jnp.finfo(X.dtype).tiny))) @ vectors.T

    def matrix_exp(Y, _):
        values, vectors = jnp.linalg.eigh(Y)
        return (vectors * jnp.exp(values)) @ vectors.T

    def loss(X, decay):
        return jnp.sum((A @ X.reshape(-1) - y) ** 2) / (2 * y.size) + decay * jnp.trace(X)

    update = jaxopt.MirrorDescent.make_projection_grad(matrix_exp, matrix_log)
    first = round(TOTAL / alpha / STEP)

    def phase(steps):
        solver = jaxopt.MirrorDescent(loss, update, stepsize=4 * STEP, maxiter=steps, tol=0.0, implicit_diff=False)
        return jax.jit(lambda X, decay: solver.run(X, None, decay).params)

    with_decay, without = phase(first), phase(STEPS - first)
    start, decay, none = jnp.eye(n, dtype=jnp.float32), jnp.float32(alpha), jnp.float32(0.0)
    with_decay, without = with_decay.lower(start, decay).compile(), without.lower(start, none).compile()

    def run() -> tuple[np.ndarray, float]:
        X = jax.block_until_ready(without(with_decay(start, decay), none))
        return np.asarray(X)[None], STEPS

    return run
