"""Projection on ``{‖u‖₂ <= r, low <= u <= high}``: u = clip(s v), s found by a 1-D root search.

By the KKT conditions the projection of a v outside has this form with one s in [0, 1] for each
sample, and so has the linear maximizer for v, with any s. In ``τ = s²`` the function
``ψ(τ) = ‖clip(√τ v)‖² / r²`` is concave and piecewise linear, and ψ(τ) = 1 is to be solved:

    project          by the secant method, which needs no slopes
    project_within   by a fixed point that ends at 99.9 % of r
    scale_to_norm    by Newton's method, exactly and for entries and radii of every size
    project_exactly  the projection by scale_to_norm; the other two leave hard samples to it

v is a batch [n, ...] and radius holds r, [1 or n, 1, ..., 1], in v's units and type: float32 or
float64; for the first two some r is large enough to be squared. v keeps its values. On a CPU new
memory costs more than the arithmetic, so the searches write into one u.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.balls._batch import flatten, in_safe_range, l2_norm, per_sample, safe_range
from lib.balls._box import Bound, box, clipped, room_of


def project(v: Tensor, radius: Tensor, low: Bound, high: Bound) -> Tensor:
    """The projection on the box and the ball.

    The secant method climbs to the root from the left, from τ = 0 and ‖√τ v‖ = r.
    """
    tau = (radius / _norm(v)).square_()
    if (tau >= 1).all():
        return clipped(v, low, high)
    low, high = box(v, low, high)
    rounding = 16 * torch.finfo(v.dtype).eps
    tau = tau.clamp_(max=1)
    last_tau, last_excess = torch.zeros_like(tau), torch.full_like(tau, -1)
    u = torch.empty_like(v)
    for _ in range(12):
        u.copy_(v).mul_(tau.sqrt())
        if low is not None or high is not None:
            u.clamp_(low, high)
        excess = _norm(u).div_(radius).square_().sub_(1)
        solved = (excess >= -rounding) | (tau == 1)
        if solved.all():
            break
        root = torch.lerp(last_tau, tau, last_excess / (last_excess - excess))
        last_tau, last_excess = tau, excess
        tau = torch.where(solved, tau, root).clamp_(max=1)
    return _solve_the_rest(u, solved & (excess <= rounding), v, radius, low, high)


def project_within(
    v: Tensor, radius: Tensor, low: Bound, high: Bound, tolerance: float = 1e-3
) -> Tensor:
    """The projection on the box and the ball, or on a ball of at least ``(1 − tolerance) r``.

    ``s ← s r / ‖clip(s v)‖`` climbs from the radial projection and stays inside: where s grows by
    a factor, the norm grows by no more. Without a graph for autograd.
    """
    v, (low, high) = v.detach(), box(v, low, high)
    s, u = (radius / _norm(v)).clamp_(max=1), torch.empty_like(v)
    for _ in range(8):
        torch.mul(v, s, out=u)
        if low is not None or high is not None:
            u.clamp_(low, high)
        next_s = (radius / _norm(u)).mul_(s).clamp_(max=1)
        solved = next_s <= (1 + tolerance) * s
        if solved.all():
            break
        s = torch.where(solved, s, next_s)
    solved &= next_s >= (1 - tolerance) * s  # where squares underflow it falls
    return _solve_the_rest(u, solved, v, radius, low, high)


def scale_to_norm(v: Tensor, radius: Tensor, low: Bound, high: Bound) -> Tensor:
    """``clip(s v)`` of norm r, or as near to r as the box lets, for v and r of every size."""
    if in_safe_range(radius.flatten()):
        return _newton(v, radius, low, high)
    mantissa = 2 * torch.frexp(radius)[0]  # in [1, 2), or 0
    power = torch.where(radius > 0, radius / mantissa, 1)  # of two: dividing by it is exact
    low, high = box(v, low, high)
    smaller = (c if c is None else c / power for c in (low, high))
    return clipped(_newton(v, mantissa, *smaller) * power, low, high)


def _newton(v: Tensor, radius: Tensor, low: Bound, high: Bound) -> Tensor:
    """scale_to_norm for radii that can be squared; v is scaled, so that no square underflows.

    Newton's method climbs from the left and ends exactly after finitely many pieces.
    """
    least = torch.finfo(v.dtype).tiny
    peak = flatten(v).abs().amax(1).clamp(min=least)
    unit = v / per_sample(peak, v)
    radius = radius.flatten()
    scale = radius / torch.linalg.vector_norm(flatten(unit), dim=1)  # Newton's step from τ = 0
    scale = torch.where(peak > least, scale, 0)
    if low is not None or high is not None:
        square, limit = flatten(unit.square()), flatten(room_of(v, low, high).square())
        for _ in range(square.shape[1] + 1):
            free = scale.square()[:, None] * square < limit
            slope = torch.where(free, square, 0).sum(1)
            left = radius.square() - torch.where(free, 0, limit).sum(1)
            step = torch.where(slope > 0, left.clamp(min=0) / slope, scale.square()).sqrt()
            if not (step > scale).any():
                break
            scale = torch.maximum(scale, step)
    return clipped(unit * per_sample(scale, v), low, high)


def project_exactly(v: Tensor, radius: Tensor, low: Bound, high: Bound) -> Tensor:
    """The projection on the box and the ball, for entries and radii of every size."""
    inside = clipped(v, low, high)
    outside = per_sample(l2_norm(inside), v) > radius
    return torch.where(outside, scale_to_norm(v, radius, low, high), inside)


def _solve_the_rest(
    u: Tensor,
    solved: Tensor,
    v: Tensor,
    radius: Tensor,
    low: Tensor | None,
    high: Tensor | None,
) -> Tensor:
    """u, with exact projections of samples not solved, or whose r is too small to square."""
    if len(radius) > 1:
        solved = solved & (radius >= safe_range(v.dtype)[0])
    if not solved.all():
        rest = ~solved.flatten()
        low, high = (c if c is None else c.expand_as(v)[rest] for c in (low, high))
        u[rest] = project_exactly(
            v[rest], radius.expand(len(v), *radius.shape[1:])[rest], low, high
        )
    return u


def _norm(v: Tensor) -> Tensor:
    """The ℓ2 norms, shaped as the radii are."""
    over = tuple(range(1, v.dim()))
    return torch.linalg.vector_norm(v, dim=over, keepdim=True) if over else v.abs()
