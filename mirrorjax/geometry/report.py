"""The report of `check`: its measurements, the verdict, and what follows from them in words."""

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..problem.reparam import Weights
from .normaliser import shaped

if TYPE_CHECKING:
    from rich.table import Table


_BREGMAN = {
    True: "holds for this g: the sublevel sets of D(x, .) are bounded",
    False: "fails for this g: the sublevel sets of D(x, .) are not bounded",
    None: "not known for this g, so Theorem 3.10 is not claimed",
}


_FLOWS = {
    True: "end only where weights become infinite",
    False: "may leave the domain of g at finite weights",
    None: "not known to end only where weights become infinite",
}


class VERDICT(eqx.Enumeration):
    """The conclusion of `check` from the brackets; printing one shows what follows from it.

    - `commuting`: all fields commute, so R_a exists where g is regular.
    - `normalising`: the fields of g commute, and h carries their span into itself at one rate everywhere,
      `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, so R_a exists and its dual variable leaks.
    - `g_only`: the fields of g commute, but not with h, so there is an R for alpha = 0 only.
    - `neither`: the fields of g do not commute, so there is no R.
    """

    commuting = "commuting: Theorem 3.6 applies where g is regular, R_a exists"
    normalising = "normalising: h carries the flow of g into itself, R_a exists and its dual variable leaks"
    g_only = "g commutes but h does not: an R without time dependence only, for alpha = 0"
    neither = "neither: the coordinates of g do not commute, there is no R, only the primal flow"


class Brackets(eqx.Module):
    """Largest `|[X, Y]| / (|DX| |Y| + |DY| |X|)`, in [0, 1], among the fields grad g_i (`g_g`) and with grad h (`g_h`).

    `pairs` counts the pairs among the grad g_i; `complete` says that they are all of them, or settle all of them,
    rather than random combinations, whose brackets also vanish only if all do, but dilute a single small offender.
    """

    g_g: Float[Array, ""]
    g_h: Float[Array, ""]
    pairs: int = eqx.field(static=True)  # static: a count fixed by shapes
    complete: bool = eqx.field(static=True)  # static: fixed by shapes


class Leak(eqx.Module):
    """Lambda in `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, fitted at the sampled points.

    `fitted` is the best fit at the last point, with all entries, (d, d), where up to 16 coordinates may mix, with the
    diagonal, (d,), where they do not or are more, and a multiple of I, (), where J is too large to be held. `residual`
    is the largest distance of a bracket from the span of the grad g_j, `misfit` that from the Lambda of the last point,
    both normalised like the brackets; `spread` is the largest relative change of Lambda between points.
    """

    fitted: Float[Array, "..."]
    residual: Float[Array, ""]
    misfit: Float[Array, ""]
    spread: Float[Array, ""]


class Report(eqx.Module):
    """The measurements of `check`; `str(report)` is plain text, `report.table()` a rich table.

    `rank` is the smallest and `condition_number` the largest met; for a Jacobian too large for a dense decomposition
    (`rank_exact` False) they are bounds, from above and from below. `hessian_error` compares the Jacobian of
    (mu, a) -> (x, h), taken through the flow, with J J^T (J of (g, h)): equal, so symmetric and positive, exactly where
    the potential exists, and then to about 1e-8, the error of the integration. `separable` and
    `wronskian` (largest `|g' h'' - g'' h'| / (|g' h''| + |g'' h'|)`, which has a meaning where h is separable) are
    given for differences, `commutators` for quadratic forms. `points` are the sampled weights, on a leading axis.

    `contracting` means h >= 0 on the flow of h from the sampled points down to `a`, the strength asked about. `bregman`
    is Definition 3.7 (ii), bounded sublevel sets of D(x, .): a fact of the family of g, `None` where it is not known.

    `flows_end_at_infinity` means that a flow along a grad g_i ends, if it ends, only where weights become infinite, and
    does not leave the domain of g before: a fact of the family as well. That this is the Assumption A.6 of the paper is
    not confirmed, so no conclusion uses it.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorems 3.6, 3.10, 3.15, Corollary 3.12.
    """

    verdict: VERDICT
    brackets: Brackets
    commutators: Brackets | None
    wronskian: Float[Array, ""] | None
    separable: Bool[Array, ""] | None
    rank: Int[Array, ""]
    condition_number: Float[Array, ""]
    hessian_error: Float[Array, ""]
    contracting: Bool[Array, ""]
    lowest_h: Float[Array, ""]
    a: Float[Array, ""]
    measured_leak: Leak
    points: Weights
    tolerance: Float[Array, ""]
    shape: tuple[int, ...] = eqx.field(static=True)  # static: the shape of x
    bregman: bool | None = eqx.field(static=True)  # static: a fact of the class of g
    flows_end_at_infinity: bool | None = eqx.field(static=True)  # static: a fact of the class of g
    rank_exact: bool = eqx.field(static=True)  # static: fixed by shapes
    notes: tuple[str, ...] = eqx.field(static=True)  # static: text, fixed by the classes of g and h

    @property
    def size(self) -> int:
        """The number of coordinates of x."""
        return math.prod(self.shape)

    @property
    def leak(self) -> Float[Array, "..."]:
        """Lambda, shaped like `AbstractLegendre.leak`: a scalar where it is a multiple of I within half of the digits.

        0 where the pair commutes. Where the verdict is neither *commuting* nor *normalising* no Lambda holds, and this
        is the best fit at one point. Under jit it keeps the entries that were fitted.
        """
        fitted = jnp.where(self.verdict == VERDICT.commuting, 0.0, self.measured_leak.fitted)
        return shaped(fitted, self.shape)

    @property
    def leak_residual(self) -> Float[Array, ""]:
        """The largest normalised distance of a bracket [grad h, grad g_i] from the span of the grad g_j."""
        return self.measured_leak.residual

    @property
    def leak_spread(self) -> Float[Array, ""]:
        """The largest change of Lambda between sampled points, relative to its largest entry."""
        return self.measured_leak.spread

    @property
    def regular(self) -> Bool[Array, ""]:
        """True if J has full rank d at every sampled point."""
        return self.rank == self.size

    @property
    def theorem_3_6(self) -> Bool[Array, ""]:
        """Regular and commuting: R_a exists."""
        return self.regular & (self.verdict == VERDICT.commuting)

    @property
    def exists(self) -> Bool[Array, ""]:
        """Regular, and commuting or normalising: R_a exists, with a leak in the second case."""
        return self.regular & ((self.verdict == VERDICT.commuting) | (self.verdict == VERDICT.normalising))

    @property
    def theorem_3_10(self) -> Bool[Array, ""]:
        """Theorem 3.6, contracting, and Definition 3.7 (ii) known to hold: the flow converges.

        The theorem asks in addition that alpha is switched off at a finite time.
        """
        return self.theorem_3_6 & self.contracting & (self.bregman is True)

    def rows(self) -> list[tuple[str, str]]:
        """The measurements as (name, text) pairs in reading order."""
        at_most, at_least = ("", "") if self.rank_exact else ("at most ", "at least ")
        regular = "regular" if self.regular else "NOT regular: Theorem 3.6 needs full rank"
        count = jax.tree.leaves(self.points)[0].shape[0]
        lowest = f"{float(self.lowest_h):.3g}"
        rows = [
            ("verdict", str(self.verdict).split("<", 1)[1][:-1]),
            ("rank of J", f"{at_most}{int(self.rank)} of {self.size}, {regular}"),
            ("condition number of J", f"{at_least}{float(self.condition_number):.3g}"),
            *_bracket_rows("bracket", self.brackets),
            *self._leak_rows(),
        ]
        if self.commutators is not None:
            rows += _bracket_rows("commutator", self.commutators)
        if self.wronskian is not None:
            value = f"{float(self.wronskian):.2e}" if self.separable else "not defined, h is not separable"
            rows.append(("Wronskian of g', h'", value))
        return [
            *rows,
            ("Hess Q against J J^T", f"{float(self.hessian_error):.2e}"),
            ("contracting", f"{_yes(self.contracting)}, smallest h met down to a = {float(self.a):.3g}: {lowest}"),
            ("Definition 3.7 (ii)", _BREGMAN[self.bregman]),
            ("flows of grad g_i", _FLOWS[self.flows_end_at_infinity]),
            ("Theorem 3.10", f"{_yes(self.theorem_3_10)}; it asks for alpha = 0 after a finite time as well"),
            ("sampled", f"{count} points, tolerance {float(self.tolerance):.2e}"),
            *(("note", note) for note in self.notes),
        ]

    def _leak_rows(self) -> list[tuple[str, str]]:
        """Lambda in numbers, and in words what follows from it; nothing where g and h commute or g does not."""
        if self.verdict == VERDICT.commuting or self.verdict == VERDICT.neither:
            return []
        leak, spread = self.leak, f"spread {float(self.leak_spread):.2e}"
        rows = [("residual of Lambda", f"{float(self.leak_residual):.2e}, {spread} between points")]
        if self.verdict == VERDICT.g_only:
            return rows
        if not leak.ndim:
            return [
                ("Lambda", f"{float(leak):.6g} I"),
                *rows,
                ("what follows", "the limit after a switch-off minimises R_a on Zx = y, as in Theorem 3.11"),
            ]
        kind = "diagonal" if leak.ndim == len(self.shape) else "matrix"
        return [
            ("Lambda", f"{kind}, entries from {float(jnp.min(leak)):.6g} to {float(jnp.max(leak)):.6g}"),
            *rows,
            ("what follows", "the limit is the Bregman projection of x at the switch-off; it does not minimise R_a"),
        ]

    def table(self) -> "Table":
        """The report as a `rich.table.Table`."""
        from rich.table import Table  # here, so that importing mirrorjax does not load rich

        table = Table("condition", "measured")
        for name, text in self.rows():
            table.add_row(name, text)
        return table

    def __str__(self) -> str:
        return "\n".join(f"{name:<22} {text}" for name, text in self.rows())


def _bracket_rows(name: str, brackets: Brackets) -> list[tuple[str, str]]:
    kind = "settling all" if brackets.complete else "random combinations, not all pairs"
    among = f"{float(brackets.g_g):.2e} ({brackets.pairs} {'pair' if brackets.pairs == 1 else 'pairs'}, {kind})"
    return [(f"{name} g with g", among), (f"{name} g with h", f"{float(brackets.g_h):.2e}")]


def _yes(value: Bool[Array, ""]) -> str:
    return "yes" if value else "no"
