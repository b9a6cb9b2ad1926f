"""Logits that an attack sees: scaled to one spread."""

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
