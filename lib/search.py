"""The search of an attack: sweeps of steepest proximal gradient ascent (slides 12 and 14).

``worst`` keeps each sample's point of highest loss; ``survivors`` counts the samples that no point
misclassifies, and drops the others as it goes. lib.attacks says what a search should do, in a Plan.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.ascent import Function, Loss, steepest_move
from lib.balls import Ball, LInf
from lib.models import predict


class Sweep(NamedTuple):
    """Steps of these lengths, and a last look, uphill in the loss of sharpness times the logits."""

    alphas: list[float]
    relative: bool  # to the radius
    sharpness: float = 1

    def moves(self, ball: Ball) -> list[Ball | None]:
        """The ball of each step, the moves within it; None is a look without a step."""
        lengths = [alpha * ball.eps if self.relative else alpha for alpha in self.alphas]
        return [*(replace(ball, eps=length) for length in lengths), None]


class Plan(NamedTuple):
    """A search: a sweep of every sample from each start, and one of those left in doubt."""

    model: Function
    first: Sweep
    then: Sweep | None  # for the samples in doubt
    restarts: int
    bounds: tuple[float, float]
    generator: torch.Generator
    loss: Loss


class Kept(NamedTuple):
    """Each sample's point of highest loss, with the loss and the logits there."""

    z: Tensor
    loss: Tensor
    logits: Tensor


def worst(a: Tensor, b: Tensor, ball: Ball, plan: Plan) -> Tensor:
    """Each sample's point of highest loss among all that the search meets."""
    kept = None
    for restart in range(plan.restarts):
        z = _random(a, ball, plan) if restart else a.clone()
        kept = _climb(z, a, b, ball, plan, plan.first, kept)
    doubt = _in_doubt(kept.logits, b) if plan.then else []
    if len(doubt):
        some = Kept(*(t[doubt] for t in kept))
        some = _climb(some.z.clone(), a[doubt], b[doubt], ball.part(doubt), plan, plan.then, some)
        kept.z[doubt] = some.z
    return kept.z


def _climb(
    z: Tensor, a: Tensor, b: Tensor, ball: Ball, plan: Plan, sweep: Sweep, kept: Kept | None
) -> Kept:
    """What is kept after a sweep from z, which is overwritten."""
    project = _around(ball, a, *plan.bounds)
    for move in sweep.moves(ball):
        logits, loss, gradient = _look(z, b, plan, move and sweep, first=kept is None)
        here = z
        if move:
            z = project(steepest_move(gradient, move, here, *plan.bounds))
        if kept is None:
            kept = Kept(a, torch.full_like(loss, -torch.inf), logits)
        higher = loss > kept.loss
        kept = Kept(
            _where(higher, here, kept.z),
            torch.fmax(loss, kept.loss),
            torch.where(higher[:, None], logits, kept.logits),
        )
    return kept


def survivors(a: Tensor, b: Tensor, ball: Ball, plan: Plan) -> int:
    """How many samples no point of the search misclassifies; each leaves at the first that does."""
    live = torch.arange(len(a), device=a.device)
    for restart in range(plan.restarts):
        z = _random(a[live], ball.part(live), plan) if restart else a
        live, z, logits = _hunt(z, live, a, b, ball, plan, plan.first, peek=restart == 0)
        if len(live) == 0:
            return 0
    doubt = _in_doubt(logits, b[live]) if plan.then else []
    if len(doubt):
        lost = len(doubt) - len(_hunt(z[doubt], live[doubt], a, b, ball, plan, plan.then)[0])
        return len(live) - lost
    return len(live)


def _hunt(
    z: Tensor,
    live: Tensor,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    plan: Plan,
    sweep: Sweep,
    peek: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The live samples that a sweep from z does not misclassify, their last points and logits.

    peek: look at the points after one step before any gradient there: a weak model loses most.
    """
    moves, a, b = sweep.moves(ball), a[live], b[live]
    if peek:
        moves.insert(1, None)
    for move in moves:
        logits, _, gradient = _look(z, b, plan, move and sweep, first=True)
        right = predict(logits) == b
        if not right.all():
            live, a, b, z, logits = (t[right] for t in (live, a, b, z, logits))
            gradient = gradient[right] if move else None
            if len(live) == 0:
                break
        if move:
            project = _around(ball.part(live), a, *plan.bounds)
            z = project(steepest_move(gradient, move.part(live), z, *plan.bounds))
    return live, z, logits


def _look(
    z: Tensor, b: Tensor, plan: Plan, sweep: Sweep | None, first: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits and loss at z and, for a sweep, the gradient that it climbs."""
    with torch.set_grad_enabled(sweep is not None):
        z = z.detach().requires_grad_(sweep is not None)
        logits = plan.model(z)
        if first:
            _check_labels(b, logits)
        loss = goal = plan.loss(logits, b)
        if sweep and sweep.sharpness != 1:
            goal = plan.loss(sweep.sharpness * logits, b)
    gradient = torch.autograd.grad(goal.sum(), z)[0] if sweep else None
    return logits.detach(), loss.detach(), gradient


def _in_doubt(logits: Tensor, b: Tensor) -> Tensor:
    """The samples whose own class is the likeliest, by a factor of less than two."""
    if logits.shape[1] == 1:
        logits = torch.nn.functional.pad(logits, (1, 0))
    own, others = logits.gather(1, b[:, None]), logits.scatter(1, b[:, None], -torch.inf)
    lead = own - others.amax(1, keepdim=True)
    return torch.where((lead >= 0) & (lead < math.log(2)))[0]


def _random(a: Tensor, ball: Ball, plan: Plan) -> Tensor:
    """A point of ball and box around each sample, drawn in the ball and projected."""
    start = a + ball.sample(tuple(a.shape), plan.generator).to(a)
    return _around(ball, a, *plan.bounds)(start)


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where a sample is chosen, else old; new may be overwritten."""
    if new.is_cuda:  # without waiting for the device
        return torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), new, old)
    [kept] = torch.where(~chosen)
    return new.index_copy_(0, kept, old[kept])


def _around(ball: Ball, x: Tensor, low: float, high: float) -> Function:
    """``v -> `` the input nearest to v, or nearly so, within the ball around x and bounds."""
    if isinstance(ball, LInf):
        eps = ball._radius(x)
        least, most = (x - eps).clamp_(min=low), (x + eps).clamp_(max=high)
        return lambda v: v.clamp_(least, most)
    down, up = low - x, high - x
    return lambda v: ball._near(v.sub_(x), down, up).add_(x).clamp_(low, high)  # for rounding


def _check_labels(b: Tensor, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the model; one logit tells two apart."""
    classes = max(2, logits.shape[1])
    if len(b) and not 0 <= b.min() <= b.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}")
