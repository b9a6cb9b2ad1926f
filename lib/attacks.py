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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.balls import L1, L2, Ball, Bound, LInf, check_box, clip

Function = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, classes], labels [n] -> losses [n]
StepSize = float | Sequence[float] | Tensor

# In attacks on ℓ∞ a part of the last gradient steadies the signs of the next.
MOMENTUM = 0.2


def cross_entropy(logits: Tensor, b: Tensor) -> Tensor:
    """``−log softmax(logits)[b]`` of each sample: [n, classes], [n] -> [n]."""
    return F.cross_entropy(logits, b, reduction="none")


def loss_of(model: Function, a: Tensor, b: Tensor, *, loss: Loss = cross_entropy) -> Function:
    """``f(η) = L(h(a + η), b)``, the function that an attack maximizes (slide 11).

    a: inputs [n, ...]; b: labels [n]; ``loss(h(a), b)`` gives one value a sample.
    """
    return lambda eta: loss(model(a + eta), b)


def fgsm(f: Function, eta0: Tensor, ball: Ball, low: Bound = None, high: Bound = None) -> Tensor:
    """``argmax ⟨∇f(η⁰), η⟩`` over the ball, or the ball and the box: FGSM (slide 9).

    For the ℓ∞ ball and η⁰ = 0 this is ``eps · sign(∇f(0))`` (Goodfellow et al., 2015). It is
    exact when f grows with a linear function of η. Pixels whose gradient is 0 stay as they are.
    Raises ValueError unless ``low <= 0 <= high``.
    """
    return ball.lmo(_gradient(f, eta0), low, high)


def pga(
    f: Function,
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
        eta = project(eta + move)
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

    Steepest PGA from η = 0, for ℓ∞ with a little momentum. Every further restart begins at a
    random point of ball and box, drawn with the generator (None: seed 0). Of all points met,
    the first and the last included, each sample keeps the one of highest loss: none ends with
    a lower loss than it began.

    a: inputs [n, ...] within bounds, in whose units the radius is; b: int64 labels [n].
    step_size: a number, one a step, or None for ``αᵢ = c eps (1 + cos(π i / steps))``, c = 5 for
    ℓ2, else 1: the first steps cross the ball, the last ones refine.
    Raises ValueError for a model in training mode, for inputs outside bounds or NaN, for labels
    that are no classes of the model, and for settings that make no sense.
    """
    plan = _plan(model, a, b, ball, steps, step_size, restarts, bounds, generator, loss)
    worst, highest = a.clone(), torch.full_like(b, -torch.inf, dtype=a.dtype)
    low, high = plan.bounds[0] - a, plan.bounds[1] - a
    project = _projection(ball, a, low, high)
    for restart in range(restarts if len(a) else 0):
        eta, past = _start(restart, a, ball, plan), None
        for alpha in [*plan.alphas, None]:
            z, _, value, gradient = _look(model, a + eta, b, plan, last=alpha is None)
            better = value > highest
            worst[better], highest[better] = z[better], value[better]
            if alpha is not None:
                past = _steadied(gradient, past, ball)
                eta = project(eta + _steepest(past, alpha, eta, ball, low, high))
    return worst


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
    plan = _plan(model, a, b, ball, **attack_settings)
    if len(a) == 0 or batch_size < 1:
        raise ValueError(
            f"needs samples and batch_size >= 1, got {len(a)} samples, batch_size={batch_size}"
        )
    batches = torch.arange(len(a), device=a.device).split(batch_size)
    if progress:
        from tqdm import tqdm

        batches = tqdm(batches, desc="robust accuracy", unit="batch")
    survivors = 0
    for live in batches:
        for restart in range(plan.restarts):
            x, y, part = a[live], b[live], _part(ball, live)
            eta, past = _start(restart, x, part, plan), None
            for alpha in [*plan.alphas, None]:
                if len(live) == 0:
                    break
                _, logits, _, gradient = _look(model, x + eta, y, plan, last=alpha is None)
                right = logits.argmax(1) == y
                live, x, y, eta = (t[right] for t in (live, x, y, eta))
                if alpha is not None and len(live):
                    past = None if past is None else past[right]
                    past, part = _steadied(gradient[right], past, ball), _part(ball, live)
                    alpha = alpha[live] if torch.is_tensor(alpha) and alpha.dim() else alpha
                    box = plan.bounds[0] - x, plan.bounds[1] - x
                    eta = part._project(eta + _steepest(past, alpha, eta, part, *box), *box)
        survivors += len(live)
    return survivors / len(a)


class _Plan(NamedTuple):
    alphas: list[float | Tensor]
    restarts: int
    bounds: tuple[float, float]
    generator: torch.Generator
    loss: Loss


def _plan(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int = 7,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    loss: Loss = cross_entropy,
) -> _Plan:
    """The settings of an attack, or ValueError with advice where it makes no sense."""
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
            "scale them (the model normalizes inside), and look for NaN"
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
        c = 5 if isinstance(ball, L2) else 1
        shape = [c * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
        alphas = [ball.eps * part for part in _schedule(shape, steps)]
    else:
        alphas = _schedule(step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)
    return _Plan(alphas, restarts, bounds, generator, loss)


def _schedule(step_size: StepSize, steps: int) -> list[float]:
    """The step size of each step."""
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    alphas = torch.as_tensor(step_size, dtype=torch.float64)
    if alphas.dim() and alphas.shape != (steps,):
        raise ValueError(
            f"step_size must hold one number for each of {steps} steps, got {list(alphas.shape)}"
        )
    if not (torch.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"step sizes must be finite and >= 0, got {step_size}")
    return alphas.expand(steps).tolist()


def _gradient(f: Function, eta: Tensor) -> Tensor:
    """∇f(η) of each sample: samples do not mix, so their sum's gradient holds them all."""
    with torch.inference_mode(False), torch.enable_grad():
        eta = eta.detach().requires_grad_()
        value = f(eta)
        if value.shape != eta.shape[:1]:
            raise ValueError(f"f must return one value a sample, got {list(value.shape)}")
        return torch.autograd.grad(value.sum(), eta)[0]


def _steepest(
    gradient: Tensor, alpha: float | Tensor, eta: Tensor, ball: Ball, low: Bound, high: Bound
) -> Tensor:
    """The step from η that gains most along the gradient, of length α in the ball's norm."""
    if not isinstance(ball, L1):  # the box comes in when the step is projected
        return replace(ball, eps=alpha)._lmo(gradient, None, None)
    # One pixel takes the whole ℓ1 step, unless it is full: then the next one has the rest.
    low, high = (c if c is None else c - eta for c in (low, high))
    return replace(ball, eps=alpha)._lmo(gradient, low, high)


def _projection(ball: Ball, like: Tensor, low: Bound, high: Bound) -> Function:
    """``v -> ball.project(v, low, high)``, prepared for many v that it may overwrite."""
    if not isinstance(ball, LInf):
        return lambda v: ball._project(v, low, high)
    # The ℓ∞ ball is a box, and so is what it shares with a box: one clamp projects on both.
    eps = ball._radius(like).expand_as(like)
    low, high = clip(-eps, low, None), clip(eps, None, high)
    return lambda v: v.clamp_(low, high)


def _start(restart: int, a: Tensor, ball: Ball, plan: _Plan) -> Tensor:
    """Where a run begins: the first at 0, every other at a random point of ball and box."""
    if restart == 0:
        return torch.zeros_like(a)
    low, high = plan.bounds
    return ball._project(ball.sample(tuple(a.shape), plan.generator).to(a), low - a, high - a)


def _look(
    model: Function, z: Tensor, b: Tensor, plan: _Plan, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The input, in bounds whatever its rounding, its logits and losses, and their gradient."""
    with torch.inference_mode(False), torch.set_grad_enabled(not last):
        z = z.detach().clamp(*plan.bounds).requires_grad_(not last)
        logits = model(z)
        value = plan.loss(logits, b)
        gradient = None if last else torch.autograd.grad(value.sum(), z)[0]
    return z.detach(), logits.detach(), value.detach(), gradient


def _steadied(gradient: Tensor, past: Tensor | None, ball: Ball) -> Tensor:
    """The gradient, for ℓ∞ with momentum."""
    if past is None or not isinstance(ball, LInf):
        return gradient
    return torch.add(gradient, past, alpha=MOMENTUM)


def _part(ball: Ball, live: Tensor) -> Ball:
    """The ball with the radii of some samples only."""
    many = torch.is_tensor(ball.eps) and ball.eps.dim() == 1
    return replace(ball, eps=ball.eps[live.to(ball.eps.device)]) if many else ball
