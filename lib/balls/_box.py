"""Boxes ``{v : low <= v <= high}`` that hold 0, such as what is left of the image box.

A bound is a number, a tensor that broadcasts to the batch v [n, ...], or None where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

Bound = float | Tensor | None


def box(v: Tensor, low: Bound, high: Bound) -> tuple[Tensor | None, Tensor | None]:
    """The bounds as tensors of v's type and device; None is no bound."""
    as_v = {"dtype": v.dtype, "device": v.device}
    low, high = (c if c is None else torch.as_tensor(c, **as_v) for c in (low, high))
    return low, high


def clip(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """v with each entry moved into [low, high]; None is no bound."""
    low, high = box(v, low, high)
    return v if low is None and high is None else v.clamp(low, high)


def room(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """How far each entry may move from 0 in its own direction: high, −low, or infinity."""
    up = torch.inf if high is None else high
    down = torch.inf if low is None else -low
    up, down = (torch.as_tensor(c, dtype=v.dtype, device=v.device) for c in (up, down))
    return torch.where(v > 0, up, down)


def check_box(low: Bound, high: Bound) -> None:
    """Raise ValueError unless ``low <= 0 <= high`` everywhere (NaN fails too)."""
    below = low is None or torch.as_tensor(low).amax() <= 0
    above = high is None or torch.as_tensor(high).amin() >= 0
    if not (below and above):
        raise ValueError("the box must hold 0: low <= 0 <= high in every entry")
