"""Boxes ``{v : low <= v <= high}`` that hold 0, such as what is left of the image box.

A bound is a number, a tensor that broadcasts to the batch v [n, ...], or None where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.balls._batch import check_batch

Bound = float | Tensor | None


def box(v: Tensor, low: Bound, high: Bound) -> tuple[Tensor | None, Tensor | None]:
    """The bounds as tensors of v's type and device; None is no bound."""
    low, high = (
        c if c is None else torch.as_tensor(c, dtype=v.dtype, device=v.device) for c in (low, high)
    )
    return low, high


def clip(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """v with each entry moved into [low, high]; None is no bound, and v itself if both are.

    >>> import torch
    >>> from lib.balls import clip
    >>> clip(torch.tensor([[-2.0, 0.25, 2.0]]), None, 0.5).tolist()
    [[-2.0, 0.25, 0.5]]

    v: floats [n, ...]; low <= high: numbers or tensors that broadcast to v. NaN stays NaN.
    Raises ValueError for other bounds, and for a v of integers, which would cut them to whole
    numbers.
    """
    check_batch(v)
    _check_shapes(low, high, v)
    low, high = box(v, low, high)
    least, most = (end if c is None else c for c, end in ((low, -torch.inf), (high, torch.inf)))
    if not bool(torch.all(torch.as_tensor(least) <= torch.as_tensor(most, device=v.device))):
        raise ValueError(f"bounds must be low <= high in every entry, got {low} and {high}")
    return clipped(v, low, high)


def clipped(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """clip without a look at the bounds, for loops."""
    low, high = box(v, low, high)
    return v if low is None and high is None else v.clamp(low, high)


def room(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """How far each entry may move from 0 in its own direction: high, −low, or infinity.

    >>> import torch
    >>> from lib.balls import room
    >>> room(torch.tensor([[-2.0, 2.0]]), -0.25, 0.75).tolist()
    [[0.25, 0.75]]

    v: floats [n, ...]; low <= 0 <= high: numbers or tensors that broadcast to v. An entry 0 counts
    as negative. Raises ValueError for a v of integers, and for a box without 0.
    """
    check_batch(v)
    return room_of(v, *check_box(low, high, v))


def room_of(v: Tensor, low: Bound, high: Bound) -> Tensor:
    """room without a look at v and the box, for loops."""
    up = torch.inf if high is None else high
    down = torch.inf if low is None else -low
    up, down = (torch.as_tensor(c, dtype=v.dtype, device=v.device) for c in (up, down))
    return torch.where(v > 0, up, down)


def check_box(low: Bound, high: Bound, like: Tensor | None = None) -> tuple[Bound, Bound]:
    """The box, or ValueError unless ``low <= 0 <= high`` everywhere and NaN nowhere.

    Entries that miss 0 by the rounding of their type, eight machine epsilons times the box's
    width there, are moved to 0. like: a batch that the bounds must broadcast to.

    >>> import torch
    >>> from lib.balls import check_box
    >>> low, high = check_box(-1.0, torch.tensor([0.5, -1e-7]))
    >>> high.tolist()
    [0.5, 0.0]
    """
    if like is not None:
        _check_shapes(low, high, like)
    if _holds(low, high):
        return low, high
    low, high = _as_tensor(low), _as_tensor(high)
    if low is not None and high is not None:
        spare = 8 * max(_rounding(low), _rounding(high)) * (high - low)
        spare = torch.where(torch.isfinite(spare), spare, 0)
        low = torch.where((low > 0) & (low <= spare), 0, low)
        high = torch.where((high < 0) & (-high <= spare), 0, high)
    if not _holds(low, high):
        low_entries, high_entries = (
            "no bound" if c is None else f"entries from {c.min():.6g} to {c.max():.6g}"
            for c in (low, high)
        )
        raise ValueError(
            "the box must hold 0, low <= 0 <= high in every entry, got for low "
            f"{low_entries}, for high {high_entries}: for inputs a in [0, 1] pass low=-a, high=1-a"
        )
    return low, high


def _holds(low: Bound, high: Bound) -> bool:
    """Whether ``low <= 0 <= high`` in every entry; NaN does not."""
    low, high = _as_tensor(low), _as_tensor(high)
    below = low is None or not low.numel() or bool(low.amax() <= 0)
    above = high is None or not high.numel() or bool(high.amin() >= 0)
    return below and above


def _as_tensor(bound: Bound) -> Tensor | None:
    """Numbers keep their digits."""
    if bound is None or torch.is_tensor(bound):
        return bound
    return torch.as_tensor(bound, dtype=torch.float64)


def _rounding(bound: Tensor) -> float:
    """The machine epsilon of the bound's type; 0 for integers."""
    return torch.finfo(bound.dtype).eps if bound.is_floating_point() else 0.0


def _check_shapes(low: Bound, high: Bound, v: Tensor) -> None:
    """ValueError for a bound that does not broadcast to v."""
    for name, bound in (("low", low), ("high", high)):
        try:
            _as_tensor(bound)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be a number or a tensor, got {bound!r}") from None
        if torch.is_tensor(bound) and bound.dim():
            shape = bound.shape
            pairs = zip(reversed(shape), reversed(v.shape), strict=False)
            if len(shape) > v.dim() or any(b not in (1, c) for b, c in pairs):
                raise ValueError(
                    f"{name} must be a number or a tensor that broadcasts to the batch, "
                    f"{list(v.shape)}, got {list(shape)}"
                )
