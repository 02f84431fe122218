"""read_bias() of a network: the bias that training has accumulated in each tensor that is written as g(w)."""

import jax
from jaxtyping import PyTree

from ..checks import require_kind
from ..geometry import Bias, read_bias as read_one
from ..problem import AbstractRegularizer, WeightDecay
from .reparameterize import Reparameterization
from .rules import Factored


def read_bias(
    split: Reparameterization, weights0: PyTree, weights: PyTree, h: AbstractRegularizer | None = None
) -> dict[str, Bias]:
    """`mirrorjax.read_bias` of every tensor with two weights an entry, by the tensor's name.

    **Arguments:**

    - `split`, `weights0`: what `reparameterize` returned; keep `weights0`, since training changes the weights.
    - `weights`: the weights after training.
    - `h`: the regularizer of each tensor's weights; `WeightDecay()` by default, which is `alpha |theta|^2` of
      `mirrorjax.optim` at strength 1.

    **Returns:** name -> `Bias`, for the tensors whose rule is a family with two weights an entry, such as
    `Factored(Hadamard())`. Other tensors have no a for each entry and are left out.

    **Raises:** `ValueError` where no tensor has such a rule, for trees that are not built like the one that
    `reparameterize` returned, and as `mirrorjax.read_bias`, with the name of the tensor.

    Example:

        split, weights0 = nn.reparameterize(params, {"*/kernel": mj.Hadamard()})
        biases = nn.read_bias(split, weights0, train(weights0))
        biases["dense/kernel"].a

    Source: as `mirrorjax.read_bias`, tensor by tensor.
    """
    require_kind(split, Reparameterization, "split", "what reparameterize returned first")
    h = WeightDecay() if h is None else h
    start, end = (_factors(split, tree, name) for tree, name in ((weights0, "weights0"), (weights, "weights")))
    biases = {}
    for tensor, rule in zip(split.tensors, split.rules, strict=True):
        if not isinstance(rule, Factored) or not rule.g.elementwise or len(jax.tree.leaves(start[tensor.name])) != 2:
            continue
        try:
            biases[tensor.name] = read_one(rule.g, h, start[tensor.name], end[tensor.name])
        except ValueError as error:
            raise ValueError(f"{tensor.name}: {error}") from error
    if not biases:
        rules = sorted({tensor.rule for tensor in split.tensors if tensor.rule})
        raise ValueError(
            "no tensor is written by a family with two weights an entry, such as Factored(Hadamard()); the rules are "
            f"{', '.join(rules) or 'none'}. product_spectrum shows what decay does to matrix products"
        )
    return biases


def _factors(split: Reparameterization, tree: PyTree, name: str) -> dict[str, PyTree]:
    try:
        return split.factors(tree)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
