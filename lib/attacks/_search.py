"""The search of an attack: sweeps of steepest proximal gradient ascent (slides 12 and 14).

``worst`` keeps each sample's point of highest loss; ``survivors`` counts the samples that no point
misclassifies, and drops the others as it goes. lib.attacks says what a search should do, in a Plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.attacks._ascent import Function, Loss, steepest_move
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
    drop: bool = False  # each sample as soon as it is misclassified


class Found(NamedTuple):
    """The samples searched, and of each the point of highest loss, with loss and logits there."""

    index: Tensor  # in the batch
    a: Tensor
    b: Tensor
    z: Tensor
    loss: Tensor
    logits: Tensor


def worst(a: Tensor, b: Tensor, ball: Ball, plan: Plan) -> Tensor:
    """Each sample's point of highest loss among all that the search meets."""
    found, doubt, then = _search(a, b, ball, plan)
    return found.z.index_copy_(0, doubt, then.z)


def survivors(a: Tensor, b: Tensor, ball: Ball, plan: Plan) -> int:
    """How many samples no point of the search misclassifies."""
    found, doubt, then = _search(a, b, ball, plan._replace(drop=True))
    return len(found.b) - len(doubt) + len(then.b)


def _search(a: Tensor, b: Tensor, ball: Ball, plan: Plan) -> tuple[Found, Tensor, Found]:
    """What the first sweeps find, which samples are in doubt, and what the last finds of these."""
    index = torch.arange(len(a), device=a.device)
    found = Found(
        index, a, b, a, a.new_full((len(a),), -torch.inf), a.new_full((len(a), 1), torch.nan)
    )
    for restart in range(plan.restarts):
        if restart and len(found.b) == 0:
            break
        z = _random(found, ball, plan) if restart else a.clone()
        found = _climb(z, found, ball, plan, plan.first, first=restart == 0)
    doubt = _in_doubt(found.logits, found.b) if plan.then else index[:0]
    then = Found(*_rows(doubt, *found))
    if len(doubt):
        then = _climb(then.z.clone(), then, ball, plan, plan.then)
    return found, doubt, then


def _climb(
    z: Tensor, found: Found, ball: Ball, plan: Plan, sweep: Sweep, first: bool = False
) -> Found:
    """What is found after a sweep from z, which is overwritten."""
    moves = sweep.moves(ball)
    if first and plan.drop:  # a weak model loses most samples in one step: look before a gradient
        moves.insert(1, None)
    project = None
    for move in moves:
        logits, loss, gradient = _look(z, found.b, plan, move and sweep, first)
        right = predict(logits) == found.b if plan.drop else None
        if plan.drop and not right.all():
            [right] = torch.where(right)
            found = Found(*_rows(right, *found))
            if len(right) == 0:
                break
            z, logits, loss = _rows(right, z, logits, loss)
            [gradient] = _rows(right, gradient) if move else [None]
            project = None
        here, first = (z if move else z.clone()), False  # _where overwrites it
        if move:
            project = project or _around(ball, found, plan)
            z = project(steepest_move(gradient, move.part(found.index), here, *plan.bounds))
        higher = loss > found.loss
        found = found._replace(
            z=_where(higher, here, found.z),
            loss=torch.fmax(loss, found.loss),
            logits=torch.where(higher[:, None], logits, found.logits),
        )
    return found


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
    """The samples whose own class is the likeliest, by less than 1 in the logits."""
    if logits.shape[1] == 1:
        logits = torch.nn.functional.pad(logits, (1, 0))
    own, others = logits.gather(1, b[:, None]), logits.scatter(1, b[:, None], -torch.inf)
    lead = own - others.amax(1, keepdim=True)
    return torch.where((lead >= 0) & (lead < 1))[0]


def _random(found: Found, ball: Ball, plan: Plan) -> Tensor:
    """A point of ball and box around each sample, drawn in the ball and projected."""
    a = found.a
    start = a + ball.part(found.index).sample(tuple(a.shape), plan.generator).to(a)
    return _around(ball, found, plan)(start)


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where a sample is chosen, else old; new may be overwritten."""
    if new.is_cuda:  # without waiting for the device
        return torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), new, old)
    [kept] = torch.where(~chosen)
    return new.index_copy_(0, kept, old.index_select(0, kept))


def _rows(index: Tensor, *tensors: Tensor) -> list[Tensor]:
    """``t[index]`` of each: on a CPU index_select copies images five times as fast."""
    return [t.index_select(0, index) for t in tensors]


def _around(ball: Ball, found: Found, plan: Plan) -> Function:
    """``v -> `` the input nearest to v, or nearly so, within bounds and the ball around a."""
    ball, a, (low, high) = ball.part(found.index), found.a, plan.bounds
    if isinstance(ball, LInf):
        eps = ball._radius(a)
        least, most = (a - eps).clamp_(min=low), (a + eps).clamp_(max=high)
        return lambda v: v.clamp_(least, most)
    down, up = low - a, high - a
    return lambda v: ball._near(v.sub_(a), down, up).add_(a).clamp_(low, high)  # for rounding


def _check_labels(b: Tensor, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the model; one logit tells two apart."""
    classes = max(2, logits.shape[1])
    if len(b) and not 0 <= b.min() <= b.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}")
