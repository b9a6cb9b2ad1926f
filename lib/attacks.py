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
    steps: int = 7,
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
    Raises ValueError for a model in training mode, for inputs outside bounds or NaN, for labels
    that are no classes of the model, and for settings that make no sense.
    """
    a = a.detach()
    plan = _plan(model, a, b, ball, steps, step_size, restarts, bounds, generator, loss)
    return _worst(model, a, b, ball, plan)


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
        survivors += _survivors(model, some, labels, ball.part(i), plan)
    return survivors / len(a)


class _Plan(NamedTuple):
    alphas: list[float]
    relative: bool  # to the radius
    restarts: int
    bounds: tuple[float, float]
    generator: torch.Generator
    loss: Loss


def _worst(model: Function, a: Tensor, b: Tensor, ball: Ball, plan: _Plan) -> Tensor:
    """Each sample's point of highest loss among all that the search meets."""
    worst, highest = a, torch.full_like(b, -torch.inf, dtype=a.dtype)
    (low, high), steps = plan.bounds, _steps(ball, plan)
    project = _around(ball, a, low, high)
    for restart in range(plan.restarts):
        z = a.clone()
        if restart:
            z = project(a + ball.sample(tuple(a.shape), plan.generator).to(a))
        for k, step in enumerate([*steps, None]):
            with torch.set_grad_enabled(step is not None):
                logits = model(z.requires_grad_(step is not None))
                if restart == k == 0:
                    _check_labels(b, logits)
                value = plan.loss(logits, b)
            here = z.detach()
            if step is not None:
                [gradient] = torch.autograd.grad(value.sum(), z)
                z = project(steepest_move(gradient, step, here, low, high))
            worst = _where(value > highest, here, worst)
            highest = torch.fmax(highest, value.detach())
    return worst


def _survivors(model: Function, a: Tensor, b: Tensor, ball: Ball, plan: _Plan) -> int:
    """How many samples no point of the search misclassifies; each leaves at the first that does."""
    (low, high), steps = plan.bounds, _steps(ball, plan)
    live = torch.arange(len(a), device=a.device)
    for restart in range(plan.restarts):
        x, y, part = a[live], b[live], ball.part(live)
        z = x.detach()
        if restart:
            start = x + part.sample(tuple(x.shape), plan.generator).to(x)
            z = _around(part, x, low, high)(start)
        for step in [*steps, None] if restart else [steps[0], None, *steps[1:], None]:
            # None is a look without a gradient. A weak model loses most samples at the first step.
            with torch.set_grad_enabled(step is not None):
                logits = model(z.requires_grad_(step is not None))
                _check_labels(y, logits)
                value = plan.loss(logits, y) if step is not None else None
            right = predict(logits) == y
            live, x, y, here = (t[right] for t in (live, x, y, z.detach()))
            if len(live) == 0:
                return 0
            if step is not None:
                [gradient] = torch.autograd.grad(value.sum(), z)
                project = _around(ball.part(live), x, low, high)
                here = project(steepest_move(gradient[right], step.part(live), here, low, high))
            z = here
    return len(live)


def _steps(ball: Ball, plan: _Plan) -> list[Ball]:
    """The ball of each step: the moves within it."""
    lengths = [alpha * ball.eps if plan.relative else alpha for alpha in plan.alphas]
    return [replace(ball, eps=length) for length in lengths]


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
    steps: int,
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
    if step_size is None:
        c = 5 if isinstance(ball, L2) else 1
        step_size = [c * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    alphas = step_sizes(step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)
    return _Plan(alphas, relative, restarts, bounds, generator, loss)


def _around(ball: Ball, x: Tensor, low: float, high: float) -> Function:
    """``v -> `` the input nearest to v within the ball around x and within bounds."""
    if isinstance(ball, LInf):
        eps = ball._radius(x)
        least, most = (x - eps).clamp_(min=low), (x + eps).clamp_(max=high)
        return lambda v: v.clamp_(least, most)
    down, up = low - x, high - x
    return lambda v: ball._project(v - x, down, up).add_(x).clamp_(low, high)  # for rounding


def _check_labels(b: Tensor, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the model; one logit tells two apart."""
    classes = max(2, logits.shape[1])
    if len(b) and not 0 <= b.min() <= b.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}")
