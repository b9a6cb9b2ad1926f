"""Norm balls and the two questions an attack asks of them (slides 7, 8, 11, 12).

For the ball ``{v : ‖v‖ <= eps}`` of the ℓ∞, ℓ2 or ℓ1 norm and a box that holds 0::

    project(v)   the nearest point:         argmin ‖u − v‖₂   over ‖u‖ <= eps, low <= u <= high
    lmo(g)       the linear maximization:   argmax ⟨g, u⟩     over the same set

Both are exact. Because the box holds 0, a solution has the signs of its input, and only
magnitudes remain to be found: ``0 <= m <= room``, where the room is ``high`` under a positive
entry and ``−low`` under a negative one. What is left is a one-dimensional dual: a scale
shared by all coordinates for ℓ2, a threshold for ℓ1.

Batches lead: a tensor ``[n, ...]`` holds n samples, and each is treated alone. Radii and
bounds are in the units of v (for images: pixels in [0, 1]).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.balls._box import Bound, check_box, clip, room
from lib.balls._l2_box import flat, near, rows, scaled, shrunk


@dataclass(frozen=True, eq=False)
class Ball(ABC):
    """``{v : ‖v‖ <= eps}``; eps is a number >= 0, or a tensor [n] with one radius a sample.

    Raises ValueError for a radius that is negative, infinite or NaN.
    """

    eps: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.eps, float) and 0 <= self.eps < math.inf:
            return
        eps = torch.as_tensor(self.eps)
        if eps.dim() > 1:
            raise ValueError(f"eps must be a number or a tensor [n], got shape {list(eps.shape)}")
        if not (torch.isfinite(eps) & (eps >= 0)).all():
            raise ValueError(f"eps must be finite and >= 0, got {self.eps}")

    @abstractmethod
    def norm(self, v: Tensor) -> Tensor:
        """``‖v‖`` of each sample: [n, ...] -> [n]."""

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:
        """``max ⟨g, v⟩ over ‖v‖ <= 1`` of each sample: [n, ...] -> [n] (slide 8, def-dual-norm)."""

    @abstractmethod
    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Points [n, ...] drawn from the ball, uniformly by volume."""

    def project(self, v: Tensor, low: Bound = None, high: Bound = None) -> Tensor:
        """The point of the ball, or of the ball and the box, nearest to v in ℓ2.

        This is the prox-operator of the set's indicator function (slide 11, prop-prox-indicator).
        low and high are numbers or tensors that broadcast to v.
        Raises ValueError unless ``low <= 0 <= high``.
        """
        check_box(low, high)
        nearest = self._project(v, low, high)
        return nearest.clone() if nearest is v else nearest

    def lmo(self, g: Tensor, low: Bound = None, high: Bound = None) -> Tensor:
        """A maximizer of ``⟨g, v⟩`` over the ball, or over the ball and the box (slides 8, 9).

        Without a box the maximum is ``eps · dual_norm(g)`` (prop-lmo, prop-lmo-box). Entries with
        g = 0 stay 0.
        Raises ValueError unless ``low <= 0 <= high``.
        """
        check_box(low, high)
        return self._lmo(g, low, high)

    # The same without the check, for loops that checked their box before they began.
    @abstractmethod
    def _project(self, v: Tensor, low: Bound, high: Bound) -> Tensor: ...

    @abstractmethod
    def _lmo(self, g: Tensor, low: Bound, high: Bound) -> Tensor: ...

    def _near(self, v: Tensor, low: Bound, high: Bound) -> Tensor:
        """The projection on the box and this ball, or one of at least 99.9 % of its radius."""
        return self._project(v, low, high)

    def part(self, index: Tensor) -> Ball:
        """The ball for some samples only: their radii, if each has its own."""
        if not torch.is_tensor(self.eps) or self.eps.dim() == 0:
            return self
        return replace(self, eps=self.eps[index.to(self.eps.device)])

    def _radius(self, v: Tensor) -> Tensor:
        """eps in v's type, shaped [1 or n, 1, ..., 1]."""
        eps = torch.as_tensor(self.eps, dtype=v.dtype, device=v.device)
        if eps.dim() and len(eps) != len(v):
            raise ValueError(f"eps holds {len(eps)} radii for a batch of {len(v)} samples")
        return eps.reshape(-1, *[1] * (v.dim() - 1))


class LInf(Ball):
    """The ℓ∞ ball: no entry moves by more than eps. Its dual norm is ℓ1."""

    def norm(self, v):
        return flat(v).abs().amax(1)

    def dual_norm(self, g):
        return flat(g).abs().sum(1)

    def sample(self, shape, generator=None):
        v = 2 * torch.rand(shape, generator=generator) - 1
        return v * self._radius(v)

    def _project(self, v, low, high):
        eps = self._radius(v)
        return clip(v.clamp(-eps, eps), low, high)

    def _lmo(self, g, low, high):
        return clip(g.sign().mul_(self._radius(g)), low, high)


class L2(Ball):
    """The ℓ2 ball. The norm is its own dual."""

    def norm(self, v):
        return torch.linalg.vector_norm(flat(v), dim=1)

    def dual_norm(self, g):
        return self.norm(g)

    def sample(self, shape, generator=None):
        v = torch.randn(shape, generator=generator)
        v = v / rows(flat(v).norm(dim=1), v)
        volume = torch.rand(shape[0], generator=generator)  # the share of the ball inside ‖v‖
        return v * rows(volume ** (1 / math.prod(shape[1:])), v) * self._radius(v)

    def _project(self, v, low, high):
        return shrunk(v, self._radius(v), low, high)

    def _near(self, v, low, high):
        return near(v, self._radius(v), low, high)

    def _lmo(self, g, low, high):
        if low is None and high is None:
            norm, kind = self.norm(g), torch.finfo(g.dtype)
            least = kind.tiny**0.5 / kind.eps  # from here on no square that matters underflows
            if ((norm > least) & (norm < 1 / least)).all():
                return g * rows(self._radius(g).flatten() / norm, g)
        return scaled(g, self._radius(g), low, high)


class L1(Ball):
    """The ℓ1 ball: its linear maximizers are sparse. Its dual norm is ℓ∞."""

    def norm(self, v):
        return flat(v).abs().sum(1)

    def dual_norm(self, g):
        return flat(g).abs().amax(1)

    def sample(self, shape, generator=None):
        # Of p + 1 exponentials, the first p over the sum of all are uniform in the simplex.
        sign = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        share = torch.empty(shape[0], math.prod(shape[1:]) + 1).exponential_(generator=generator)
        share = (share / share.sum(1, keepdim=True))[:, :-1].reshape(shape)
        return sign * share * self._radius(sign)

    def _project(self, v, low, high):
        # KKT: magnitude clip(m − μ, 0, room), the threshold μ >= 0 such that they add up to eps.
        # The sum falls as μ grows, linearly between break points: bisect for the first point
        # that keeps to eps, then step back from it. Differences to that point, and not sums
        # of large entries, keep the digits of a small eps.
        inside, eps = clip(v, low, high), self._radius(v).reshape(-1, 1)
        outside = self.norm(inside)[:, None] > eps
        if not outside.any():
            return inside
        m, limit = flat(v.abs()), flat(room(v, low, high))
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
        return torch.where(rows(outside, v), u, inside)

    def _lmo(self, g, low, high):
        # Spend eps on the largest entries first, each up to its room (a fractional knapsack).
        m, eps = flat(g).abs(), self._radius(g).reshape(-1, 1)
        order = m.argsort(1, descending=True)
        limit = flat(room(g, low, high)).minimum(eps).masked_fill(m == 0, 0)
        limit = limit.gather(1, order)
        spent = torch.nn.functional.pad(limit.cumsum(1), (1, 0))[:, :-1]
        share = torch.minimum(limit, (eps - spent).clamp(min=0))
        return torch.zeros_like(m).scatter(1, order, share).reshape(g.shape) * g.sign()
