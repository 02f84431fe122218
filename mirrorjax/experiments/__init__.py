"""The paper's experiments: one file each, one registry."""

import importlib
from collections.abc import Callable

from .core.run import Experiment as Experiment, RunFolder as RunFolder, Setting as Setting
from .theory.convergence import EXPERIMENT as _convergence
from .theory.depth import EXPERIMENT as _depth
from .theory.geometry import EXPERIMENT as _geometry
from .theory.grokking import EXPERIMENT as _grokking
from .theory.matrix_sensing import EXPERIMENT as _matrix_sensing
from .theory.schedules import EXPERIMENT as _schedules
from .theory.separable import EXPERIMENT as _separable
from .theory.sparse_coding import EXPERIMENT as _sparse_coding


def _network(name: str, summary: str) -> Experiment:
    """An experiment whose file is read when it runs: with flax and orbax it would double the command line's start."""
    return Experiment(name, summary, _run_of(name.replace("-", "_")), presets=("paper", "gpu", "quick"))


def _run_of(module: str) -> Callable[[RunFolder, Setting], None]:
    def run(folder: RunFolder, setting: Setting) -> None:
        importlib.import_module(f".networks.{module}", __name__).run(folder, setting)

    return run


_THEORY = (_matrix_sensing, _geometry, _depth, _sparse_coding, _schedules, _grokking, _convergence, _separable)
_NETWORKS = (
    _network("lora", "Fig. 4, Table 5: the LoRA products of a GPT-2 under weight decay that is switched off."),
    _network("vit", "Figs. 4, 14, Tables 3, 4: W_K^T W_Q of a ViT under weight decay that is switched off."),
    _network("lr-schedule", "Figs. 15, 16: the same under learning-rate schedules, with AdamW and SGD."),
    _network("pilot", "PILoT: sparse networks from x = m w, beside magnitude pruning."),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (*_THEORY, *_NETWORKS)}
"""Every experiment by the name `mirrorjax reproduce` takes."""
