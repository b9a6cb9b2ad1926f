"""Attacks: max of f(η) over ‖η‖ <= eps, with f(η) = L(h(a + η), b) (slides 7 to 15).

====================  ===========================================================  ===========
``fgsm``              the maximizer of f's linearization over the ball             slide 9
``pga``               η ← project(η + α ∇f(η)); with steepest, PGA-ℓ∞ and its kin  slides 12-14
``mm_step``           the maximizer of a concave minorant of f                     slide 15
``attack``            steepest PGA that keeps each sample's worst point
``robust_accuracy``   the share of samples that no such point misclassifies
====================  ===========================================================  ===========

``f`` maps perturbations [n, ...] to values [n], each sample to its own, so that one backward
pass through their sum gives every sample's gradient. No function touches the model: not its
parameters, its mode, its buffers, nor any ``.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.balls import L1, Ball, Bound, LInf, check_box, clip

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, classes], labels [n] -> losses [n]
StepSize = float | Sequence[float] | Tensor


def cross_entropy(logits: Tensor, b: Tensor) -> Tensor:
    """``−log softmax(logits)[b]`` of each sample: [n, classes], [n] -> [n]."""
    return F.cross_entropy(logits, b, reduction="none")


def loss_of(
    model: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, *, loss: Loss = cross_entropy
) -> Callable[[Tensor], Tensor]:
    """``f(η) = L(h(a + η), b)``, the function that an attack maximizes (slide 11).

    a: inputs [n, ...]; b: labels [n]; ``loss(h(a), b)`` gives one value a sample.
    """
    return lambda eta: loss(model(a + eta), b)


def fgsm(
    f: Callable[[Tensor], Tensor],
    eta0: Tensor,
    ball: Ball,
    low: Bound = None,
    high: Bound = None,
) -> Tensor:
    """``argmax ⟨∇f(η⁰), η⟩`` over the ball, or the ball and the box: FGSM (slide 9).

    For the ℓ∞ ball and η⁰ = 0 this is ``eps · sign(∇f(0))`` (Goodfellow et al., 2015). It is
    exact when f grows with a linear function of η. Pixels whose gradient is 0 stay as they are.
    Raises ValueError unless ``low <= 0 <= high``.
    """
    return ball.lmo(_gradient(f, eta0), low, high)


def pga(
    f: Callable[[Tensor], Tensor],
    eta0: Tensor,
    ball: Ball,
    step_size: StepSize,
    steps: int,
    low: Bound = None,
    high: Bound = None,
    steepest: bool = False,
) -> Tensor:
    """Proximal gradient ascent: ``ηᵏ⁺¹ = project(ηᵏ + αₖ ∇f(ηᵏ))`` (slide 12).

    step_size: α >= 0, or one αₖ a step. Returns the last iterate [n, ...].
    steepest: step along the steepest direction in the ball's own norm instead of ∇f, so that
    αₖ is the step's length in that norm: ``sign(∇f)`` for ℓ∞ (PGA-ℓ∞, Madry et al., 2018),
    ``∇f / ‖∇f‖₂`` for ℓ2, the largest entries of ∇f that still have room for ℓ1.
    A sample whose gradient is 0 stays where it is.

    If f is concave, smooth with constant L, and α <= 1/L, then f never decreases along the
    plain iterates. Networks are neither, and PGA may then end below FGSM.
    Raises ValueError for a bad step size, ``steps < 1``, or a box without 0.
    """
    check_box(low, high)
    alphas, project = _schedule(step_size, steps), _projection(ball, eta0, low, high)
    eta = eta0.detach()
    for alpha in alphas:
        gradient = _gradient(f, eta)
        move = _steepest(gradient, alpha, eta, ball, low, high) if steepest else alpha * gradient
        eta = project(move.add_(eta))
    return eta


def mm_step(
    gradient: Tensor, zeta: Tensor, eps: float | Tensor, smoothness: float | Tensor
) -> Tensor:
    """The maximizer over ``‖η‖∞ <= eps`` of ``⟨g, η − ζ⟩ − L/2 ‖η − ζ‖∞²`` (slide 15, corrected).

    gradient: g = ∇f(ζ), [n, ...]; zeta: ζ, [n, ...], within the ball; smoothness: L > 0, the
    constant of f in the ℓ∞ norm. eps and smoothness are numbers or tensors [n].

    ``η = clip(ζ + t* sign(g), [−eps, eps])``: at a distance t, entry i gains ``|gᵢ| min(t, rᵢ)``
    with the room ``rᵢ = eps − sign(gᵢ) ζᵢ``. What remains is concave in t,

        t* = argmax Σᵢ |gᵢ| min(t, rᵢ) − L t²/2 = maxⱼ min(rⱼ, Sⱼ / L),   Sⱼ = Σ |gᵢ| over rᵢ >= rⱼ

    because t* is the largest t at which the slope from the left, ``Σ |gᵢ| over rᵢ >= t``, is
    still at least L t. Where f is concave and L-smooth in the ℓ∞ norm, ``f(η) >= f(ζ)``.
    Raises ValueError unless L > 0 and ``|ζ| <= eps``.
    """
    ones = [1] * (zeta.dim() - 1)
    eps, smoothness = (
        torch.as_tensor(c, dtype=zeta.dtype, device=zeta.device).reshape(-1, *ones)
        for c in (eps, smoothness)
    )
    if not (torch.isfinite(smoothness) & (smoothness > 0)).all():
        raise ValueError(f"smoothness must be finite and > 0, got {smoothness.flatten().tolist()}")
    if not (zeta.abs() <= eps).all():
        raise ValueError("zeta must lie in the ball, |zeta| <= eps: project it first")
    room = (eps - gradient.sign() * zeta).flatten(1)
    room, order = room.sort(1, descending=True)
    slope = gradient.flatten(1).abs().gather(1, order).cumsum(1)
    t = torch.minimum(room, slope / smoothness.reshape(-1, 1)).amax(1).reshape(-1, *ones)
    return (zeta + t * gradient.sign()).clamp(-eps, eps)


def attack(
    model: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int = 10,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Adversarial inputs ``a + η`` [n, ...] of high loss with η in the ball and a + η in bounds.

    Steepest PGA from η = 0; every further restart begins at a random point of the ball, drawn
    with the generator (None: seed 0). Of all points met, the first and the last included, each
    sample keeps the one of highest loss: none ends with a lower loss than it began.

    a: inputs [n, ...] within bounds; b: int64 labels [n]; the ball's radius is in units of a.
    step_size: a number, one a step, or None for ``αᵢ = eps (1 + cos(π i / steps))``, which
    begins with steps across the ball and ends with steps that refine.
    Raises ValueError for a model in training mode, for inputs outside bounds or NaN, for labels
    that are no classes of the model, and for settings that make no sense.
    """
    schedule = _check(model, a, b, ball, steps, step_size, restarts, bounds)
    generator = generator or torch.Generator().manual_seed(0)
    worst, highest = a.clone(), torch.full_like(b, -torch.inf, dtype=a.dtype)
    for restart in range(restarts if len(a) else 0):
        eta = _start(restart, a, ball, bounds, generator)
        for alpha in [*schedule, None]:
            z, _, value, gradient = _look(model, a + eta, b, bounds, loss, last=alpha is None)
            worst = torch.where(_rows(value > highest, a), z, worst)
            highest = torch.fmax(highest, value)
            if alpha is not None:
                eta = _step(eta, gradient, alpha, ball, bounds[0] - a, bounds[1] - a, True)
    return worst


def robust_accuracy(
    model: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int = 10,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 500,
    progress: bool = False,
) -> float:
    """The share of samples, in [0, 1], that stay correctly classified at every point of an attack.

    The settings are those of ``attack``. No attack finds every adversarial example: this bounds
    the true robust accuracy from above. A sample leaves the search at the first point that is
    misclassified, its clean input included, so that weak models are judged quickly.
    batch_size: samples at a time; progress: show a bar.
    Raises ValueError as ``attack`` does, and for an empty batch, which has no accuracy.
    """
    schedule = _check(model, a, b, ball, steps, step_size, restarts, bounds)
    if len(a) == 0 or batch_size < 1:
        raise ValueError(
            f"needs samples and batch_size >= 1, got {len(a)} samples, batch_size={batch_size}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    batches = torch.arange(len(a)).split(batch_size)
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="robust accuracy", unit="batch")
    survivors = 0
    for batch in batches:
        live = batch.to(a.device)
        for restart in range(restarts):
            eta = _start(restart, a[live], _part(ball, live), bounds, generator)
            for alpha in [*schedule, None]:
                if len(live) == 0:
                    break
                x, y = a[live], b[live]
                _, logits, _, gradient = _look(model, x + eta, y, bounds, loss, alpha is None)
                right = logits.argmax(1) == y
                live, x, eta = live[right], x[right], eta[right]
                if alpha is not None and len(live):
                    alpha = alpha[live] if torch.is_tensor(alpha) else alpha
                    part = _part(ball, live)
                    box = bounds[0] - x, bounds[1] - x
                    eta = _step(eta, gradient[right], alpha, part, *box, True)
        survivors += len(live)
    return survivors / len(a)


def _gradient(f: Callable[[Tensor], Tensor], eta: Tensor) -> Tensor:
    """∇f(η) of each sample: samples do not mix, so their sum's gradient holds them all."""
    with torch.inference_mode(False), torch.enable_grad():
        eta = eta.detach().requires_grad_()
        value = f(eta)
        if value.shape != eta.shape[:1]:
            raise ValueError(
                f"f must return one value a sample, [{len(eta)}], got {list(value.shape)}"
            )
        return torch.autograd.grad(value.sum(), eta)[0]


def _steepest(
    gradient: Tensor, alpha: float | Tensor, eta: Tensor, ball: Ball, low: Bound, high: Bound
) -> Tensor:
    """The step from η that gains most along the gradient, of length α in the ball's norm."""
    if not isinstance(ball, L1):  # projected afterwards
        return replace(ball, eps=alpha)._lmo(gradient, None, None)
    # One pixel takes the whole ℓ1 step, unless it is full: then the next one has the rest.
    room = (c if c is None else c - eta for c in (low, high))
    return replace(ball, eps=alpha)._lmo(gradient, *room)


def _projection(ball: Ball, like: Tensor, low: Bound, high: Bound) -> Callable[[Tensor], Tensor]:
    """``v -> ball.project(v, low, high)``, prepared for many v."""
    if not isinstance(ball, LInf):
        return lambda v: ball._project(v, low, high)
    # The ℓ∞ ball is a box, and so is what it shares with a box: one clamp projects on both.
    eps = ball._radius(like).expand_as(like)
    low, high = clip(-eps, low, None), clip(eps, None, high)
    return lambda v: v.clamp_(low, high)


def _look(
    model: Callable[[Tensor], Tensor],
    z: Tensor,
    b: Tensor,
    bounds: tuple[float, float],
    loss: Loss,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The input z clipped to bounds, its logits and losses, and unless last the gradient."""
    with torch.inference_mode(False), torch.set_grad_enabled(not last):
        z = z.detach().clamp(*bounds).requires_grad_(not last)
        logits = model(z)
        value = loss(logits, b)
        gradient = None if last else torch.autograd.grad(value.sum(), z)[0]
    return z.detach(), logits.detach(), value.detach(), gradient


def _start(
    restart: int, a: Tensor, ball: Ball, bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Where a run begins: the first at 0, every other at a random point of ball and box."""
    if restart == 0:
        return torch.zeros_like(a)
    eta = ball.sample(tuple(a.shape), generator).to(a)
    return ball._project(eta, bounds[0] - a, bounds[1] - a)


def _schedule(step_size: StepSize, steps: int) -> list[float | Tensor]:
    """The step size of each step."""
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    if isinstance(step_size, int | float) or torch.as_tensor(step_size).dim() == 0:
        alphas = [step_size] * steps
    else:
        alphas = list(step_size)
    if len(alphas) != steps:
        raise ValueError(
            f"step_size must hold one number for each of {steps} steps, got {len(alphas)}"
        )
    for alpha in alphas:
        if not 0 <= alpha < torch.inf:
            raise ValueError(f"step sizes must be finite and >= 0, got {alpha}")
    return alphas


def _check(
    model: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int,
    step_size: StepSize | None,
    restarts: int,
    bounds: tuple[float, float],
) -> list[float | Tensor]:
    """The schedule of an attack, or ValueError with advice where the attack makes no sense."""
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() before an attack")
    if not a.is_floating_point() or a.dim() < 2:
        raise ValueError(f"inputs must be floats [n, ...], got {a.dtype} {list(a.shape)}")
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    if not ((a >= low) & (a <= high)).all():
        raise ValueError(
            f"inputs must lie in bounds [{low}, {high}], got [{a.min():g}, {a.max():g}]: "
            "scale them to bounds (the model normalizes inside), and look for NaN"
        )
    if b.dtype != torch.int64 or b.shape != a.shape[:1]:
        raise ValueError(f"labels must be int64 [{len(a)}], got {b.dtype} {list(b.shape)}")
    if len(a):
        with torch.no_grad():
            classes = model(a[:1]).shape[1]
        if b.min() < 0 or b.max() >= classes:
            raise ValueError(
                f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}"
            )
    if restarts < 1:
        raise ValueError(f"restarts must be >= 1, got {restarts}")
    if step_size is None:
        step_size = [1 + math.cos(math.pi * i / max(steps, 1)) for i in range(steps)]
        return [ball.eps * c for c in _schedule(step_size, steps)]
    return _schedule(step_size, steps)


def _part(ball: Ball, live: Tensor) -> Ball:
    """The ball with the radii of some samples only."""
    many = torch.is_tensor(ball.eps) and ball.eps.dim() == 1
    return replace(ball, eps=ball.eps[live]) if many else ball


def _rows(per_sample: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ..., 1], to meet a batch ``like`` [n, ...]."""
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))
