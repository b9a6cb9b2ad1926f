"""Projection on ``{‖u‖₁ <= r, low <= u <= high}``: magnitudes clip(|v| − μ, 0, room), μ by search.

v is a batch [n, ...] and radius holds r, [1 or n, 1, ..., 1], in v's units and type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.balls._batch import flatten, per_sample
from lib.balls._box import Bound, clipped, room_of


def project(v: Tensor, radius: Tensor, low: Bound, high: Bound) -> Tensor:
    """The projection on the box and the ball.

    By the KKT conditions the threshold μ >= 0 is such that the magnitudes add up to r. Their sum
    falls as μ grows, linearly between break points: bisect for the first point that keeps to r,
    then step back from it. Differences to that point, and not sums of large entries, keep the
    digits of a small r.
    """
    inside, eps = clipped(v, low, high), radius.reshape(-1, 1)
    outside = flatten(inside).abs().sum(1, keepdim=True) > eps
    if not outside.any():
        return inside
    m, limit = flatten(v.abs()), flatten(room_of(v, low, high))
    points = torch.cat([m, m - limit], 1).clamp(min=0).sort(1).values
    first = torch.zeros_like(outside, dtype=torch.int64)
    last = first + points.shape[1] - 1
    for _ in range(points.shape[1].bit_length()):
        middle = (first + last) // 2
        excess = m - points.gather(1, middle)
        within = excess.clamp(min=0).minimum(limit).sum(1, keepdim=True) <= eps
        first, last = torch.where(within, first, middle + 1), torch.where(within, middle, last)
    excess = m - points.gather(1, last)
    for _ in range(2):  # the second step corrects the first's rounding
        free = ((excess >= 0) & (excess < limit)).sum(1, keepdim=True).clamp(min=1)
        left = eps - excess.clamp(min=0).minimum(limit).sum(1, keepdim=True)
        excess = excess + left / free
    u = v.sign() * excess.clamp(min=0).minimum(limit).reshape(v.shape)
    return torch.where(per_sample(outside, v), u, inside)
