"""The table of experiments: name, summary, module, presets and seed of each, as data. No module is imported here."""

from .core.experiment import Experiment

ON_A_GPU = ("paper", "gpu", "quick")  # networks have a preset between the two
# The seed of depth is a draw on which all that the paper says is seen; its table over seeds says how often that is so.
# That of matrix-sensing is not 0, where three rows still fall towards X* at t = 1250; its table over seeds shows both.
_TABLE = (
    Experiment(
        "matrix-sensing",
        "Recovery after switch-off: Table 2 and Figs. 3, 5, 6, 7 of the paper.",
        f"{__package__}.theory.matrix_sensing:run",
        seed=2,
    ),
    Experiment(
        "geometry",
        "R_a of every family and its three effects: Figs. 1, 2, 10, 12.",
        f"{__package__}.theory.geometry:run",
    ),
    Experiment(
        "depth",
        "Depth: Figs. 8 and 9, what is kept of a decay that is switched off.",
        f"{__package__}.theory.depth:run",
        seed=11,
    ),
    Experiment(
        "sparse-coding",
        "Codes of faces: stationary sooner, L1 to L2, the Lasso; Figs. 11 and 13 of the paper.",
        f"{__package__}.theory.sparse_coding:run",
    ),
    Experiment(
        "schedules",
        "Hand-made and learned schedules of decay on held-out data: Table 2 generalised.",
        f"{__package__}.theory.schedules:run",
    ),
    Experiment(
        "grokking",
        "Late generalisation after switch-off: Fig. 7 of the paper.",
        f"{__package__}.theory.grokking:run",
        seed=11,
    ),
    Experiment(
        "convergence",
        "Theorem 3.10: how fast each family converges after switch-off.",
        f"{__package__}.theory.convergence:run",
    ),
    Experiment(
        "deep",
        "Past the paper: depths 2 to 5 with weight decay; limits, clocks and critical strengths.",
        f"{__package__}.theory.deep:run",
    ),
    Experiment(
        "separable",
        "Past the paper: which margin wins on separable data, and when.",
        f"{__package__}.theory.separable:run",
        seed=1,
    ),
    Experiment(
        "lasso-path",
        "Past the paper: the time average of x from an infinitesimal start, and the Lasso path.",
        f"{__package__}.theory.lasso_path:run",
    ),
    Experiment(
        "rank",
        "Past the paper: weight decay balances the factors of a matrix and lowers its rank.",
        f"{__package__}.theory.rank:run",
    ),
    Experiment(
        "discrete",
        "Past the paper: what decay, step size and noise each add to the bias of a training run.",
        f"{__package__}.theory.discrete:run",
    ),
    Experiment(
        "lora",
        "Fig. 4, Table 5: the LoRA products of a GPT-2 under weight decay that is switched off.",
        f"{__package__}.networks.lora:run",
        presets=ON_A_GPU,
    ),
    Experiment(
        "lora-tasks",
        "Past the paper: on which texts decay of the LoRA factors pays; less data, more epochs, noise.",
        f"{__package__}.networks.lora_tasks:run",
    ),
    Experiment(
        "vit",
        "Figs. 4, 14, Tables 3, 4: W_K^T W_Q of a pretrained ViT, fine-tuned at a constant rate.",
        f"{__package__}.networks.vit:run",
        presets=ON_A_GPU,
    ),
    Experiment(
        "vit-scratch",
        "Past the paper: the same on CIFAR-10 from scratch, under a cosine of the learning rate.",
        f"{__package__}.networks.vit_scratch:run",
        presets=ON_A_GPU,
    ),
    Experiment(
        "lr-schedule",
        "Figs. 15, 16: the fine-tuning under learning-rate schedules, with AdamW and SGD.",
        f"{__package__}.networks.lr_schedule:run",
        presets=ON_A_GPU,
    ),
    Experiment(
        "pilot",
        "PILoT: sparse networks from x = m w, beside magnitude pruning and spred.",
        f"{__package__}.networks.pilot:run",
        presets=ON_A_GPU,
    ),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _TABLE}
"""Every experiment by the name that `mirrorjax reproduce` takes."""


def register_experiment(experiment: Experiment) -> None:
    """Adds an experiment to `EXPERIMENTS`, so that it can be run by its name.

    **Raises:** `ValueError` for a name that another experiment has.
    """
    if EXPERIMENTS.setdefault(experiment.name, experiment) is not experiment:
        raise ValueError(f"there is an experiment {experiment.name!r} already; choose another name")
