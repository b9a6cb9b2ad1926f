"""``clip(s·v, low, high)`` with an s for each sample: what the ℓ2 ball and a box ask for.

By the KKT conditions the projection of a v outside is of this form, and so is the linear
maximizer for v: only the scale s is to be found. ``ψ(τ) = ‖clip(√τ v)‖² / eps²`` is concave and
piecewise linear, and ψ(s²) = 1.

v is a batch [n, ...] and eps holds the radii [1 or n, 1, ..., 1], in v's units and type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.balls._box import Bound, box, clip, room


def near(v: Tensor, eps: Tensor, low: Bound, high: Bound) -> Tensor:
    """The projection on the box and the ball, or on a ball of at least 99.9 % of the radius.

    ``s ← s eps / ‖clip(s·v)‖`` climbs from the radial projection and stays inside: where s grows by
    a factor, the norm grows by no more. In place, as shrunk is, and without a graph for autograd.
    """
    v, (low, high) = v.detach(), box(v, low, high)
    s, u = (eps / _norm(v)).clamp_(max=1), torch.empty_like(v)
    for _ in range(8):
        torch.mul(v, s, out=u)
        if low is not None or high is not None:
            u.clamp_(low, high)
        grown = (eps / _norm(u)).mul_(s).clamp_(max=1)
        enough = grown <= 1.001 * s
        if enough.all():
            break
        s = torch.where(enough, s, grown)
    enough &= grown >= 0.999 * s  # where squares underflow it falls
    return _mended(u, enough, v, eps, low, high)


def shrunk(v: Tensor, eps: Tensor, low: Bound, high: Bound) -> Tensor:
    """The projection on the box and the ball.

    By the secant method, which needs no slopes: from τ = 0 and ‖√τ v‖ = eps it climbs to the root
    from the left. In place: on a CPU new memory costs more than the arithmetic.
    """
    tau = (eps / _norm(v)).square_()
    if (tau >= 1).all():
        return clip(v, low, high)
    low, high = box(v, low, high)
    rounding = 16 * torch.finfo(v.dtype).eps
    tau = tau.clamp_(max=1)
    last, before, u = torch.zeros_like(tau), torch.full_like(tau, -1), torch.empty_like(v)
    for _ in range(12):
        u.copy_(v).mul_(tau.sqrt())
        if low is not None or high is not None:
            u.clamp_(low, high)
        excess = _norm(u).div_(eps).square_().sub_(1)
        right = (excess >= -rounding) | (tau == 1)
        if right.all():
            break
        root = torch.lerp(last, tau, before / (before - excess))
        last, before, tau = tau, excess, torch.where(right, tau, root).clamp_(max=1)
    return _mended(u, right & (excess <= rounding), v, eps, low, high)


def _mended(u: Tensor, right: Tensor, v: Tensor, eps: Tensor, low: Bound, high: Bound) -> Tensor:
    """u, with the projections of the samples that are not right."""
    if not right.all():
        wrong = ~right.flatten()
        low, high = (c if c is None else c.expand_as(v)[wrong] for c in (low, high))
        u[wrong] = scaled(v[wrong], rows(eps.flatten().expand(len(v))[wrong], v), low, high)
    return u


def scaled(v: Tensor, eps: Tensor, low: Bound, high: Bound) -> Tensor:
    """``clip(s·v)`` of norm eps, or as near to eps as the box lets.

    By Newton's method, which climbs from the left too, and ends exactly after finitely many pieces.
    """
    least = torch.finfo(v.dtype).tiny
    peak = flat(v).abs().amax(1).clamp(min=least)
    unit = v / rows(peak, v)  # so that no square underflows
    eps = eps.flatten()
    scale = eps / _norm(unit).flatten()  # Newton's step from τ = 0: the radial projection
    scale = torch.where(peak > least, scale, 0)
    if low is not None or high is not None:
        square, limit = flat(unit.square()), flat(room(v, low, high).square())
        for _ in range(square.shape[1] + 1):
            free = scale.square()[:, None] * square < limit
            slope = torch.where(free, square, 0).sum(1)
            left = eps.square() - torch.where(free, 0, limit).sum(1)
            step = torch.where(slope > 0, left.clamp(min=0) / slope, scale.square()).sqrt()
            if not (step > scale).any():
                break
            scale = torch.maximum(scale, step)
    return clip(unit * rows(scale, v), low, high)


def flat(v: Tensor) -> Tensor:
    """[n, ...] -> [n, p]; [n] -> [n, 1]."""
    return v.unsqueeze(-1).flatten(1)


def rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ..., 1], to meet a batch ``like`` [n, ...]."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))


def _norm(v: Tensor) -> Tensor:
    """The ℓ2 norms, shaped as eps is."""
    over = tuple(range(1, v.dim()))
    return torch.linalg.vector_norm(v, dim=over, keepdim=True) if over else v.abs()
