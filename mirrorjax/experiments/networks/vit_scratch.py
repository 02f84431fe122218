"""W_K^T W_Q of a ViT that is trained on CIFAR-10 from scratch, under weight decay that is switched off.

This is no setting of the paper, which fine-tunes a pretrained ViT at a constant learning rate (`vit`). It asks whether
the paper's claims hold without a pretrained start, and under the schedule that such trainings have: a warm-up and a
cosine of the learning rate.
"""

from ..core.experiment import Setting
from ..core.run import RunFolder
from .switching import Names, Size, reproduce
from .vision import COARSE, TINY, Training, on_cifar10, warm_up_cosine

SIZES = {
    "paper": Size(
        Training(TINY, 300, 128, 3, padding=4, chunk=6),
        1e-3,
        warm_up_cosine,
        (0.0, 0.05, 0.1, 0.2),
        (50.0, 100.0, 150.0, 200.0),
    ),
    "gpu": Size(
        Training(TINY, 30, 128, 3, padding=4, chunk=6),
        1e-3,
        warm_up_cosine,
        (0.0, 0.1, 0.2, 0.4),
        (5.0, 10.0, 15.0, 20.0),
    ),
    # The fewer the steps, the stronger: what counts is strength times the sum of the learning rates. The four times lie
    # in the first third of training: a decay of 2.7 that ends later leaves a ratio that decay 1.8 does not reach.
    "quick": Size(
        Training(COARSE, 5, 64, 2, records=3), 4e-3, warm_up_cosine, (0.0, 0.9, 1.8, 2.7), (1.0, 1.15, 1.3, 1.45)
    ),
}
NAMES = Names("vit_scratch", "crossings", "ends", "ratio", "layers", " (from scratch)")


def run(folder: RunFolder, setting: Setting) -> None:
    """CIFAR-10, or as much of it as there is, from scratch."""
    size = SIZES[setting.preset]
    reproduce(folder, size, on_cifar10(folder, size.training), setting.seed, NAMES)
