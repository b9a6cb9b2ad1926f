"""Attacks on a model: high loss within a ball and a box (slides 7, 10 and 12).

``attack`` is steepest proximal gradient ascent that keeps each sample's worst point;
``robust_accuracy`` is the share of samples that no point of it misclassifies. Their loops are in
``_search``, the slides' algorithms in ``_ascent``.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from lib.attacks._ascent import (
    Function,
    Loss,
    StepSize,
    cross_entropy,
    fgsm,
    loss_of,
    mm_step,
    pga,
    step_sizes,
)
from lib.attacks._search import Plan, Sweep, survivors, worst
from lib.balls import L2, Ball

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
    steps: a number, or None for 4 (ℓ2: 2) and, if step_size is None too, 7 (9) more for the samples
    in doubt: those with b the likeliest class, by less than 1 in the logits. These begin at the
    point kept, are half as long, and climb the loss of twice the logits, in which b's strongest
    rival counts for more.
    An ℓ2 step ends on the projection on bounds and the ball, or on one at most 0.1 % smaller.
    Raises ValueError for a model in training mode, for inputs outside bounds or NaN, for labels
    that are no classes of the model, and for settings that make no sense.
    """
    a = a.detach()
    plan = _plan(model, a, b, ball, steps, step_size, restarts, bounds, generator, loss)
    return worst(a, b, ball, plan)


SIGNATURE = inspect.signature(attack)


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
    settings = SIGNATURE.bind(model, a, b, ball, **attack_settings)
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
    count = 0
    for some, labels, i in batches:
        count += survivors(some, labels, ball.part(i), plan)
    return count / len(a)


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
) -> Plan:
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
    c, few, more = (5, 2, 9) if isinstance(ball, L2) else (1, 4, 7)
    then = Sweep(_cosine(c / 2, more), True, sharpness=2) if relative and steps is None else None
    steps = few if steps is None else steps
    alphas = step_sizes(_cosine(c, steps) if relative else step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)
    return Plan(model, Sweep(alphas, relative), then, restarts, bounds, generator, loss)


def _cosine(c: float, steps: int) -> list[float]:
    """Lengths of steps that fall from 2c towards 0."""
    return [c * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
