"""W_K^T W_Q of a pretrained ViT, fine-tuned at a constant learning rate (the paper's Figs. 4 and 14, Tables 3 and 4).

The paper fine-tunes a ViT-tiny on ImageNet for 300 epochs, with decay that is switched off after 50, 100, 150 or 200
of them. Here every preset has this setting in small: a ViT that is pretrained on half of CIFAR-10 and fine-tuned on
the other half, decay off after the same shares of the training. Preset `paper` also has the paper's own setting, where
there is a folder of ImageNet.
"""

from ...data import vit_weights
from ..core.experiment import Setting
from ..core.run import RunFolder
from .imagenet import find_imagenet
from .switching import TABLE_3, Names, Size, reproduce
from .vision import COARSE, PUBLISHED, SMALL, TINY, Training, constant_rate, on_imagenet
from .vit_start import on_second_half

SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)  # of 300 epochs: 50, 100, 150, 200


def _ends(epochs: int) -> tuple[float, ...]:
    return tuple(share * epochs for share in SHARES)


PRETRAINING = {
    "paper": Training(SMALL, 30, 64, 1, padding=2),
    "gpu": Training(TINY, 30, 128, 1, padding=4),
    "quick": Training(COARSE, 10, 64, 1, padding=2),
}
PRETRAINING_RATE = 3e-3
# A decay that is switched off meets one of 0.65 times its strength at about twice the time at which it ended, so the
# crossings lie where the paper's do: at a third, two thirds and nine tenths of the training, and beyond its end.
SIZES = {
    "paper": Size(
        Training(SMALL, 40, 64, 8, padding=2), 1e-3, constant_rate, (0.0, 0.65, 1.3, 2.0), _ends(40), TABLE_3
    ),
    "gpu": Size(
        Training(TINY, 30, 128, 5, padding=4, chunk=6), 1e-4, constant_rate, (0.0, 2.5, 5.0, 7.5), _ends(30), TABLE_3
    ),
    "quick": Size(
        Training(COARSE, 4, 32, 3, padding=2, records=3), 3e-3, constant_rate, (0.0, 1.95, 3.0), _ends(4), TABLE_3
    ),
}
# The paper's own: the published ViT on a folder of ImageNet. Its learning rate and strengths are not in the text.
IMAGENET = Size(
    Training(PUBLISHED, 300, 256, 3, chunk=3),
    1e-4,
    constant_rate,
    (0.0, 0.05, 0.1, 0.2),
    (50.0, 100.0, 150.0, 200.0),
    TABLE_3,
)
IN_SMALL = Names("vit", "table3", "table4", "fig4_ratio", "fig14_layers")
ON_IMAGENET = Names(
    "imagenet_vit",
    "imagenet_table3",
    "imagenet_table4",
    "imagenet_fig4_ratio",
    "imagenet_fig14_layers",
    " (ImageNet)",
)


def run(folder: RunFolder, setting: Setting) -> None:
    """The paper's setting in small; at the paper's size also on ImageNet, where there is a folder of it."""
    path = find_imagenet() if setting.preset == "paper" else None
    weights = None if path is None else vit_weights()  # first, since the file may be missing
    size = SIZES[setting.preset]
    task = on_second_half(folder, size.training, PRETRAINING[setting.preset], PRETRAINING_RATE)
    reproduce(folder, size, task, setting.seed, IN_SMALL)
    if path is not None and weights is not None:
        reproduce(folder, IMAGENET, on_imagenet(folder, IMAGENET.training, path, weights), setting.seed, ON_IMAGENET)
