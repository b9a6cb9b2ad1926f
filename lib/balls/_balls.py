"""The ℓ∞, ℓ2 and ℓ1 balls: norms, exact projections and linear maximizers (slides 7, 8, 11)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lib.balls import _l1_box, _l2_box
from lib.balls._ball import Ball
from lib.balls._batch import (
    check_batch,
    flatten,
    in_safe_range,
    l2_norm,
    per_sample,
    safe_range,
    widened,
)
from lib.balls._box import Bound, box, room_of


class LInf(Ball):
    """The ℓ∞ ball: no entry moves by more than eps. Its dual norm is ℓ1.

    >>> import torch
    >>> from lib.balls import LInf
    >>> LInf(0.5).lmo(torch.tensor([[3.0, -0.1, 0.0]])).tolist()
    [[0.5, -0.5, 0.0]]
    """

    def norm(self, v: Tensor) -> Tensor:
        check_batch(v)
        return flatten(v).abs().amax(1)

    def dual_norm(self, g: Tensor) -> Tensor:
        check_batch(g, "g")
        return flatten(widened(g)).abs().sum(1)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        v = 2 * torch.rand(shape, generator=generator, **_like(generator)) - 1
        return v * self.radius(v)

    def _project(self, v: Tensor, low: Bound, high: Bound) -> Tensor:
        eps, (low, high) = self.radius(v), box(v, low, high)
        return _clip_(v.clamp(-eps, eps), low, high)

    def _lmo(self, g: Tensor, low: Bound, high: Bound) -> Tensor:
        eps, (low, high) = self.radius(g), box(g, low, high)
        return _clip_(g.sign().mul_(eps), low, high)


class L2(Ball):
    """The ℓ2 ball. The norm is its own dual.

    >>> import torch
    >>> from lib.balls import L2
    >>> ball, v = L2(5.0), torch.tensor([[6.0, 8.0]])
    >>> ball.norm(v).item(), [round(u, 4) for u in ball.project(v)[0].tolist()]
    (10.0, [3.0, 4.0])
    """

    def norm(self, v: Tensor) -> Tensor:
        check_batch(v)
        return l2_norm(v)

    def dual_norm(self, g: Tensor) -> Tensor:
        check_batch(g, "g")
        return l2_norm(g)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        at = _like(generator)
        v = torch.randn(shape, generator=generator, **at)
        v = v / per_sample(l2_norm(v).clamp(min=torch.finfo(v.dtype).tiny), v)
        volume = torch.rand(shape[0], generator=generator, **at)  # share of the ball inside ‖v‖
        return v * per_sample(volume ** (1 / math.prod(shape[1:])), v) * self.radius(v)

    def _project(self, v: Tensor, low: Bound, high: Bound) -> Tensor:
        w = widened(v)
        radius = self.radius(w)
        project = _l2_box.project_exactly if self._is_tiny(w) else _l2_box.project
        return project(w, radius, low, high).to(v.dtype)

    def project_within(self, v: Tensor, low: Bound = None, high: Bound = None) -> Tensor:
        w = widened(v.detach())
        radius = self.radius(w)
        project = _l2_box.project_exactly if self._is_tiny(w) else _l2_box.project_within
        return project(w, radius, low, high).to(v.dtype)

    def _is_tiny(self, v: Tensor) -> bool:
        """Whether squares near all radii underflow in v's type."""
        least, _ = safe_range(v.dtype)
        tiny = self.eps < least
        return tiny if isinstance(tiny, bool) else bool(tiny.all())

    def _lmo(self, g: Tensor, low: Bound, high: Bound) -> Tensor:
        w = widened(g)
        radius = self.radius(w)
        if low is None and high is None:
            norm = torch.linalg.vector_norm(flatten(w), dim=1)
            if in_safe_range(norm):
                return (w * per_sample(radius.flatten() / norm, w)).to(g.dtype)
        return _l2_box.scale_to_norm(w, radius, low, high).to(g.dtype)


class L1(Ball):
    """The ℓ1 ball: its linear maximizers are sparse. Its dual norm is ℓ∞.

    >>> import torch
    >>> from lib.balls import L1
    >>> L1(1.0).project(torch.tensor([[2.0, 1.5]])).tolist()
    [[0.75, 0.25]]
    """

    def norm(self, v: Tensor) -> Tensor:
        check_batch(v)
        return flatten(widened(v)).abs().sum(1)

    def dual_norm(self, g: Tensor) -> Tensor:
        check_batch(g, "g")
        return flatten(g).abs().amax(1)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        # Of p + 1 exponentials, the first p over the sum of all are uniform in the simplex.
        at = _like(generator)
        sign = 2 * torch.randint(0, 2, shape, generator=generator, device=at["device"]) - 1
        share = torch.empty(shape[0], math.prod(shape[1:]) + 1, **at)
        share.exponential_(generator=generator)
        share = (share / share.sum(1, keepdim=True))[:, :-1].reshape(shape)
        return sign * share * self.radius(share)

    def _project(self, v: Tensor, low: Bound, high: Bound) -> Tensor:
        w = widened(v)
        return _l1_box.project(w, self.radius(w), low, high).to(v.dtype)

    def _lmo(self, g: Tensor, low: Bound, high: Bound) -> Tensor:
        # Spend eps on the largest entries first, each up to its room (a fractional knapsack).
        w = widened(g)
        eps, m = self.radius(w).reshape(-1, 1), flatten(w).abs()
        order = m.argsort(1, descending=True)
        limit = flatten(room_of(w, low, high)).minimum(eps).masked_fill(m == 0, 0)
        limit = limit.gather(1, order)
        spent = torch.nn.functional.pad(limit.cumsum(1), (1, 0))[:, :-1]
        share = torch.minimum(limit, (eps - spent).clamp(min=0))
        u = torch.zeros_like(m).scatter(1, order, share).reshape(g.shape) * w.sign()
        return u.to(g.dtype)


def _clip_(v: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """v, which is ours, clipped in place: new memory costs more than the arithmetic."""
    return v if low is None and high is None else v.clamp_(low, high)


def _like(generator: torch.Generator | None) -> dict[str, Any]:
    """What is drawn is float32, on the generator's device, whatever torch's defaults are."""
    device = generator.device if generator else torch.device("cpu")
    return {"dtype": torch.float32, "device": device}
