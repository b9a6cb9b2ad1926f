"""Losses that an attack climbs: of logits [n, classes] and labels [n], one value a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.checks import check_labels, check_logits

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, classes], labels [n] -> losses [n]
NO_LABEL = torch.iinfo(torch.int64).min  # what cross-entropy ignores: no label, not even -100


def cross_entropy(logits: Tensor, b: Tensor) -> Tensor:
    """``−log softmax(logits)[b]`` of each sample: [n, classes], [n] -> [n].

    A single logit z [n, 1] stands for the two logits (0, z): ``log(1 + exp(∓z))`` (slide 5).
    Raises ValueError for logits and labels of other types or shapes, and for labels that are no
    classes, -100 too.

    >>> import torch
    >>> from lib.attacks import cross_entropy
    >>> losses = cross_entropy(torch.zeros(2, 10), torch.tensor([3, 7]))
    >>> [round(value, 4) for value in losses.tolist()]  # log 10
    [2.3026, 2.3026]
    """
    with _explained(logits, b):
        if logits.shape[1] > 1:
            return F.cross_entropy(logits, b, reduction="none", ignore_index=NO_LABEL)
        with_both(logits).gather(1, b[:, None])  # the labels are 0 and 1
        return F.binary_cross_entropy_with_logits(logits[:, 0], b.to(logits), reduction="none")


def margin(logits: Tensor, b: Tensor) -> Tensor:
    """``max over c ≠ b of logits[c] − logits[b]`` of each sample: [n, classes], [n] -> [n].

    It is > 0 where the sample is misclassified, and never flat where the logits are not. A single
    logit z [n, 1] stands for the two logits (0, z). Raises ValueError as cross_entropy does.

    >>> import torch
    >>> from lib.attacks import margin
    >>> margin(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [-1.0, 2.0]
    """
    with _explained(logits, b):
        logits = with_both(logits)
        own = b[:, None]
        return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]


def with_both(logits: Tensor) -> Tensor:
    """Logits of two classes or more: a single logit z [n, 1] becomes (0, z) [n, 2]."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


@contextmanager
def _explained(logits: Tensor, b: Tensor) -> Iterator[None]:
    """Torch looks at logits and labels as it computes; what it refuses is told in our words."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError, TypeError, AttributeError):
        check_logits(logits, logits.shape[0] if isinstance(logits, Tensor) and logits.dim() else 0)
        check_labels(b, logits)
        raise
