"""Attacks on a model: high loss within a ball and a box (slides 7, 10 and 12).

``attack`` is steepest proximal gradient ascent that keeps each sample's worst point;
``robust_accuracy`` is the share of samples that no point of it misclassifies. The algorithms
that they are made of stand in lib.ascent, and can be called from here too.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.ascent import (
    Function,
    Loss,
    StepSize,
    cross_entropy,
    fgsm,
    loss_of,
    mm_step,
    pga,
    steepest_move,
    step_sizes,
)
from lib.balls import L2, Ball, LInf
from lib.models import predict

__all__ = ["attack", "cross_entropy", "fgsm", "loss_of", "mm_step", "pga", "robust_accuracy"]


@torch.inference_mode(False)  # a caller may have it on, and autograd is needed
def attack(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int | None = None,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Adversarial inputs ``a + η`` [n, ...] of high loss, η in the ball and a + η in bounds.

    Steepest PGA from η = 0. Every further restart begins at a random point of ball and box,
    drawn with the generator (None: seed 0). Of all points met, the first and the last included,
    each sample keeps the one of highest loss: none ends with a lower loss than it began.

    a: inputs [n, ...] within bounds, in whose units the radius is; b: int64 labels [n].
    step_size: a number, one a step, or None for ``αᵢ = c eps (1 + cos(π i / steps))``, c = 5 for
    ℓ2 and 1 otherwise: the first steps cross the ball, the last ones refine.
    steps: a number, or None for 4 and, if step_size is None too, 6 more for the samples in doubt:
    those with b the likeliest class, but less than twice as likely as another. The 6 begin at the
    point kept, are half as long, and climb the loss of twice the logits, in which b's strongest
    rival counts for more.
    Raises ValueError for a model in training mode, for inputs outside bounds or NaN, for labels
    that are no classes of the model, and for settings that make no sense.
    """
    a = a.detach()
    plan = _plan(model, a, b, ball, steps, step_size, restarts, bounds, generator, loss)
    return _worst(a, b, ball, plan)


@torch.inference_mode(False)
def robust_accuracy(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    *,
    batch_size: int = 500,
    progress: bool = False,
    **attack_settings: Any,
) -> float:
    """The share of samples, in [0, 1], that stay correctly classified at every point of an attack.

    attack_settings: those of ``attack``. No attack finds every adversarial example: this bounds
    the true robust accuracy from above. A sample leaves the search at the first point that is
    misclassified, its clean input included, so that weak models are judged quickly.
    batch_size: samples at a time; progress: show a bar.
    Raises ValueError as ``attack`` does, and for an empty batch, which has no accuracy.
    """
    a = a.detach()
    settings = inspect.signature(attack).bind(model, a, b, ball, **attack_settings)
    settings.apply_defaults()
    plan = _plan(*settings.args, **settings.kwargs)
    if len(a) == 0 or batch_size < 1:
        raise ValueError(
            f"needs samples and batch_size >= 1, got {len(a)} samples, batch_size={batch_size}"
        )
    indices = torch.arange(len(a), device=a.device)
    batches = list(zip(*(t.split(batch_size) for t in (a, b, indices)), strict=True))
    if progress:
        from tqdm import tqdm

        batches = tqdm(batches, desc="robust accuracy", unit="batch")
    survivors = 0
    for some, labels, i in batches:
        survivors += _survivors(some, labels, ball.part(i), plan)
    return survivors / len(a)


class _Sweep(NamedTuple):
    """Steps of these lengths, and a last look, uphill in the loss of sharpness times the logits."""

    alphas: list[float]
    relative: bool  # to the radius
    sharpness: float = 1

    def moves(self, ball: Ball) -> list[Ball | None]:
        """The ball of each step, the moves within it; None is a look without a step."""
        lengths = [alpha * ball.eps if self.relative else alpha for alpha in self.alphas]
        return [*(replace(ball, eps=length) for length in lengths), None]


class _Plan(NamedTuple):
    model: Function
    first: _Sweep
    then: _Sweep | None  # for the samples in doubt
    restarts: int
    bounds: tuple[float, float]
    generator: torch.Generator
    loss: Loss


class _Kept(NamedTuple):
    """Each sample's point of highest loss, with the loss and the logits there."""

    z: Tensor
    loss: Tensor
    logits: Tensor


def _worst(a: Tensor, b: Tensor, ball: Ball, plan: _Plan) -> Tensor:
    """Each sample's point of highest loss among all that the search meets."""
    kept = None
    for restart in range(plan.restarts):
        z = _random(a, ball, plan) if restart else a.clone()
        kept = _climb(z, a, b, ball, plan, plan.first, kept)
    doubt = _in_doubt(kept.logits, b) if plan.then else []
    if len(doubt):
        some = _Kept(*(t[doubt] for t in kept))
        some = _climb(some.z.clone(), a[doubt], b[doubt], ball.part(doubt), plan, plan.then, some)
        kept.z[doubt] = some.z
    return kept.z


def _climb(
    z: Tensor, a: Tensor, b: Tensor, ball: Ball, plan: _Plan, sweep: _Sweep, kept: _Kept | None
) -> _Kept:
    """What is kept after a sweep from z, which is overwritten."""
    project = _around(ball, a, *plan.bounds)
    for move in sweep.moves(ball):
        logits, loss, gradient = _look(z, b, plan, move and sweep, first=kept is None)
        here = z
        if move:
            z = project(steepest_move(gradient, move, here, *plan.bounds))
        if kept is None:
            kept = _Kept(a, torch.full_like(loss, -torch.inf), logits)
        higher = loss > kept.loss
        kept = _Kept(
            _where(higher, here, kept.z),
            torch.fmax(loss, kept.loss),
            torch.where(higher[:, None], logits, kept.logits),
        )
    return kept


def _survivors(a: Tensor, b: Tensor, ball: Ball, plan: _Plan) -> int:
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
    plan: _Plan,
    sweep: _Sweep,
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
    z: Tensor, b: Tensor, plan: _Plan, sweep: _Sweep | None, first: bool
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


def _random(a: Tensor, ball: Ball, plan: _Plan) -> Tensor:
    """A point of ball and box around each sample, drawn in the ball and projected."""
    start = a + ball.sample(tuple(a.shape), plan.generator).to(a)
    return _around(ball, a, *plan.bounds)(start)


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where a sample is chosen, else old; new may be overwritten."""
    if new.is_cuda:  # without waiting for the device
        return torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), new, old)
    [kept] = torch.where(~chosen)
    return new.index_copy_(0, kept, old[kept])


def _plan(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int | None,
    step_size: StepSize | None,
    restarts: int,
    bounds: tuple[float, float],
    generator: torch.Generator | None,
    loss: Loss,
) -> _Plan:
    """The settings of an attack, or ValueError with advice where it makes no sense."""
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() before an attack")
    if not a.is_floating_point() or a.dim() < 2:
        raise ValueError(f"inputs must be floats [n, ...], got {a.dtype} {list(a.shape)}")
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    least, most = a.aminmax() if len(a) else (low, high)
    if not low <= least <= most <= high:  # NaN fails too
        raise ValueError(
            f"inputs must lie in bounds [{low}, {high}], got [{least:g}, {most:g}]: "
            "scale them (the model normalizes inside), and look for NaN"
        )
    if b.dtype != torch.int64 or b.shape != a.shape[:1]:
        raise ValueError(f"labels must be int64 [{len(a)}], got {b.dtype} {list(b.shape)}")
    if restarts < 1:
        raise ValueError(f"restarts must be >= 1, got {restarts}")
    relative = step_size is None
    then = _Sweep(_cosine(ball, 6, 0.5), True, 2) if steps is None and relative else None
    steps = 4 if steps is None else steps
    alphas = step_sizes(_cosine(ball, steps) if relative else step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)
    return _Plan(model, _Sweep(alphas, relative), then, restarts, bounds, generator, loss)


def _cosine(ball: Ball, steps: int, scale: float = 1) -> list[float]:
    """The lengths of the steps by default, in radii."""
    c = scale * (5 if isinstance(ball, L2) else 1)
    return [c * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


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
