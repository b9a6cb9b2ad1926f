"""Logits that an attack sees: of the right shape, and scaled to one spread."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.attacks._losses import with_both

# Cross-entropy weighs the rivals of a class by their logits, and is flat where these are large.
# So that a factor of the logits changes nothing, each sample's are scaled to one spread: the
# greatest minus the mean of the others, at the clean input. Digit models have about 10.
SPREAD = 12.0


def scale_of(logits: Tensor) -> Tensor:
    """The factor [n, 1] that gives each sample's logits the same spread; 1 where they have none."""
    logits = with_both(logits)
    top, classes = logits.amax(1, keepdim=True), logits.shape[1]
    spread = (top - logits.mean(1, keepdim=True)) * classes / (classes - 1)  # from the others' mean
    return torch.where((spread > 0) & (spread < torch.inf), SPREAD / spread, 1.0)


def check_logits(logits: Tensor, points: Tensor) -> None:
    """ValueError unless logits are floats [n, classes]."""
    fine = torch.is_tensor(logits) and logits.is_floating_point()
    if not fine or logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] == 0:
        what = f"{logits.dtype} {list(logits.shape)}" if torch.is_tensor(logits) else type(logits)
        raise ValueError(
            f"the model must return logits, floats [{len(points)}, classes], got {what}: "
            "for a single logit return z[:, None]"
        )


def check_labels(b: Tensor, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the model; one logit tells two apart."""
    classes = max(2, logits.shape[1])
    if len(b) and not 0 <= b.min() <= b.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}")
