"""Losses that an attack climbs: of logits [n, classes] and labels [n], one value a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, classes], labels [n] -> losses [n]


def cross_entropy(logits: Tensor, b: Tensor) -> Tensor:
    """``−log softmax(logits)[b]`` of each sample: [n, classes], [n] -> [n].

    A single logit z [n, 1] stands for the two logits (0, z): ``log(1 + exp(∓z))`` (slide 5).

    >>> import torch
    >>> from lib.attacks import cross_entropy
    >>> losses = cross_entropy(torch.zeros(2, 10), torch.tensor([3, 7]))
    >>> [round(value, 4) for value in losses.tolist()]  # log 10
    [2.3026, 2.3026]
    """
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], b.to(logits), reduction="none")
    return F.cross_entropy(logits, b, reduction="none")


def margin(logits: Tensor, b: Tensor) -> Tensor:
    """``max over c ≠ b of logits[c] − logits[b]`` of each sample: [n, classes], [n] -> [n].

    It is > 0 where the sample is misclassified, and never flat where the logits are not. A single
    logit z [n, 1] stands for the two logits (0, z).

    >>> import torch
    >>> from lib.attacks import margin
    >>> margin(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [-1.0, 2.0]
    """
    logits = with_both(logits)
    own = logits.gather(1, b[:, None])[:, 0]
    return logits.scatter(1, b[:, None], -torch.inf).amax(1) - own


def with_both(logits: Tensor) -> Tensor:
    """Logits of two classes or more: a single logit z [n, 1] becomes (0, z) [n, 2]."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits
