"""Runs of `mirrorjax sweep` and `mirrorjax resume`, and the summary of a run."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..experiments.core.folders import exists, new_folder
from ..files import write_text
from .ending import console, fail, stopping, tell
from .setup import set_precision

RECIPE = "recipe.json"


def run_recipe(file: Path, run: Path, *, resume: bool) -> None:
    """Solves the sweep of a TOML file into the folder `run`, or goes on with it, and prints a summary."""
    from ..sweeps.recipe import read_recipe, single_precision

    set_precision(single_precision(file))
    recipe = read_recipe(file)
    if not resume and exists(run):
        fail(f"the folder {run} exists and is not overwritten; choose another with --out, or `mirrorjax resume {run}`")
    with stopping(lambda: _where_it_was(run)), nullcontext() if resume else new_folder(run, marker=RECIPE):
        if not resume:
            write_text(run / RECIPE, json.dumps({"file": str(file)}) + "\n")
        dataset = recipe.sweep(run, resume)
    summarise(dataset, run)


def _where_it_was(run: Path) -> str:
    begun = exists(run)  # a run that computed nothing has left no folder
    return f"Interrupted. Go on with: mirrorjax resume {run}" if begun else "Interrupted. Nothing was computed yet."


def summarise(dataset: Any, run: Path) -> None:
    """Prints the statuses of the lanes of a run, and how to open it."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    if "status" in dataset:
        names, counts = np.unique(dataset["status"].values, return_counts=True)
        title = escape(f"{dataset['status'].size} lanes in {run}")
        table = Table("status", "lanes", title=title, title_justify="left")
        for name, count in zip(names, counts, strict=True):
            table.add_row(escape(str(name)), str(count))
        console().print(table)
    else:  # a run of `map_grid`, whose function returned no status
        tell(f"{run} holds {', '.join(map(str, dataset.data_vars))} over {', '.join(map(str, dataset.coords))}")
    if "efficiency" in dataset.attrs:
        tell(f"efficiency: {dataset.attrs['efficiency']:.0%} of the work was work of lanes")
    tell(f'open it with: mirrorjax.open_sweep("{run}")')
