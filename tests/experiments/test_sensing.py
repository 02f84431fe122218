"""Matrix sensing: the total that finite steps spend, and verdicts on the numbers of Table 2."""

import io

import numpy as np
import pytest
from rich.console import Console

from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.theory.sensing_claims import claim_table
from mirrorjax.experiments.theory.sensing_steps import effective_total


@pytest.mark.parametrize(("alpha", "t_off", "step"), [(20.0, 0.625, 0.01), (0.2, 62.5, 0.01), (0.02, 625.0, 0.25)])
def test_the_effective_total_is_that_of_the_factors_of_descent(alpha, t_off, step):
    # Descent without data: U <- U - step alpha 2 U at every step that begins before t_off; the flow has e^(-2 total).
    u, t = 1.0, 0.0
    while t < t_off - 1e-9:
        u, t = u - step * alpha * 2 * u, t + step
    assert effective_total(alpha, t_off, step) == pytest.approx(-np.log(u) / 2, rel=1e-9)


def test_each_number_of_the_table_has_its_verdict(tmp_path):
    folder = RunFolder(tmp_path / "run", "matrix-sensing", Setting("paper", 0, 64), Console(file=io.StringIO()))

    def row(method, norm, time, status="ok"):
        return {
            "schedule": "constant 2",
            "method": method,
            "paper_nuclear_norm": 1.0,
            "paper_time": 209.0,
            "nuclear_norm": norm,
            "time_to_train_loss": time,
            "status": status,
        }

    claim_table(folder, [row("flow", 1.004, 150.0), row("descent", 3.0, 212.0)])
    claim_table(folder, [row("flow", 1.006, 150.0), row("descent", 3.0, None, "unstable")])
    assert [claim.key for claim in folder.claims[:2]] == ["table-2-norm constant 2", "table-2-time constant 2"]
    assert [claim.holds for claim in folder.claims] == [True, True, False, False]
    assert folder.claims[3].ours == "150 (flow; gradient descent is unstable)"
