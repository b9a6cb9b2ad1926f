"""Ascent: the slides' algorithms for the maximum of f(η) over ‖η‖ <= eps (slides 9 to 15).

=============  ==============================================================  ============
``loss_of``    f(η) = L(h(a + η), b), what an attack maximizes                 slide 11
``fgsm``       the maximizer of f's linearization over the ball                slide 9
``pga``        η ← project(η + α ∇f(η)); with steepest, PGA-ℓ∞ and its kin     slides 12-14
``mm_step``    the maximizer of a concave minorant of f                        slide 15
=============  ==============================================================  ============

``f`` maps perturbations [n, ...] to values [n], each sample to its own, so that one backward
pass through their sum gives every sample's gradient. No function touches the model behind f:
not its parameters, its mode, its buffers, nor any ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lib.attacks._losses import Loss, cross_entropy
from lib.balls import L1, Ball, Bound, LInf, check_ball, check_box, clip
from lib.checks import check_counts, check_floats, checked_by, in_place_refused

Function = Callable[[Tensor], Tensor]
StepSize = float | Sequence[float] | Tensor


def loss_of(model: Function, a: Tensor, b: Tensor, *, loss: Loss = cross_entropy) -> Function:
    """``f(η) = L(h(a + η), b)``, the function that an attack maximizes (slide 11).

    a: inputs [n, ...]; b: labels [n]; ``loss(h(a), b)`` gives one value a sample.

    >>> import torch
    >>> from lib.attacks import loss_of
    >>> f = loss_of(lambda a: a, torch.zeros(2, 1), torch.tensor([0, 1]))  # one logit: a itself
    >>> [round(value, 2) for value in f(torch.tensor([[1.0], [1.0]])).tolist()]
    [1.31, 0.31]
    """
    return lambda eta: loss(model(a + eta), b)


def _check_start(eta0: Tensor, ball: Ball) -> None:
    check_floats("eta0", eta0)
    check_ball(ball)


@checked_by(_check_start)
def fgsm(
    f: Function,
    eta0: Tensor,
    ball: Ball,
    low: Bound = None,
    high: Bound = None,
) -> Tensor:
    """``argmax ⟨∇f(η⁰), η⟩`` over the ball, or the ball and the box: FGSM (slide 9, def-fgsm).

    For the ℓ∞ ball and η⁰ = 0 this is ``eps · sign(∇f(0))`` (Goodfellow et al., 2015). It is
    exact when f grows with a linear function of η. Pixels whose gradient is 0 stay as they are.
    Raises ValueError unless ``low <= 0 <= high``, for an f that does not return one value a sample,
    has no gradient or changes its argument, and FloatingPointError for a gradient with NaN.

    >>> import torch
    >>> from lib.attacks import fgsm
    >>> from lib.balls import LInf
    >>> f = lambda eta: eta @ torch.tensor([2.0, -1.0])
    >>> fgsm(f, torch.zeros(1, 2), LInf(0.25)).tolist()
    [[0.25, -0.25]]
    """
    return ball.lmo(_gradient(f, eta0), low, high)


@checked_by(_check_start)
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
    """Proximal gradient ascent: ``ηᵏ⁺¹ = project(ηᵏ + αₖ ∇f(ηᵏ))`` (slide 12, alg-pga).

    step_size: α >= 0, or one αₖ a step. Returns the last iterate [n, ...].
    steepest: step along the steepest direction in the ball's own norm instead of ∇f, so that
    αₖ is the step's length in that norm: ``sign(∇f)`` for ℓ∞ (PGA-ℓ∞, Madry et al., 2018),
    ``∇f / ‖∇f‖₂`` for ℓ2, the largest entries of ∇f that still have room for ℓ1.
    A sample whose gradient is 0 stays where it is.

    If ∇f is Lipschitz with constant L and α <= 1/L, f never decreases along the plain iterates
    (prop-pga-ascent). Networks with ReLUs have no such L, and PGA may end below FGSM.
    Raises ValueError for a bad step size, ``steps < 1``, or a box without 0, and as fgsm does.

    >>> import torch
    >>> from lib.attacks import pga
    >>> from lib.balls import LInf
    >>> f = lambda eta: eta @ torch.tensor([2.0, -0.5])
    >>> pga(f, torch.zeros(1, 2), LInf(1.0), step_size=0.5, steps=2).tolist()
    [[1.0, -0.5]]
    """
    check_box(low, high)
    alphas, project = step_sizes(step_size, steps), projection(ball, eta0, low, high)
    eta = eta0.detach()
    for alpha in alphas:
        gradient = _gradient(f, eta)
        if steepest:
            moved = steepest_step(gradient, replace(ball, eps=alpha), eta, low, high)
        else:
            moved = torch.add(eta, gradient, alpha=alpha)
        eta = project(moved)
    return eta


def _check_step(
    gradient: Tensor, zeta: Tensor, eps: float | Tensor, smoothness: float | Tensor
) -> None:
    check_floats("zeta", zeta)
    check_floats("gradient", gradient)
    if gradient.shape != zeta.shape:
        raise ValueError(f"gradient must be {list(zeta.shape)} as zeta, got {list(gradient.shape)}")
    LInf(eps).radius(zeta)  # one for all, or one for each sample
    if torch.is_tensor(smoothness) and smoothness.dim() and len(smoothness) != len(zeta):
        raise ValueError(f"smoothness must be a number or [{len(zeta)}], got {smoothness.tolist()}")
    radius, L = (_each(c, zeta) for c in (eps, smoothness))
    if not (torch.isfinite(L) & (L > 0)).all():
        raise ValueError(f"smoothness must be finite and > 0, got {L.flatten().tolist()}")
    if not (zeta.abs() <= radius).all():
        raise ValueError("zeta must lie in the ball, |zeta| <= eps: project it first")


def _each(c: float | Tensor, like: Tensor) -> Tensor:
    """A number, or one a sample, so that it multiplies samples like these."""
    c = torch.as_tensor(c, dtype=like.dtype, device=like.device)
    return c.reshape(-1, *[1] * (like.dim() - 1))


@checked_by(_check_step)
def mm_step(
    gradient: Tensor, zeta: Tensor, eps: float | Tensor, smoothness: float | Tensor
) -> Tensor:
    """The maximizer over ``‖η‖∞ <= eps`` of ``⟨g, η − ζ⟩ − L/2 ‖η − ζ‖∞²`` (slide 15).

    See prop-mm-step; the slide has the wrong sign and no quadratic term in t*.

    gradient: g = ∇f(ζ), [n, ...]; zeta: ζ, [n, ...], within the ball; smoothness: L > 0, the
    constant of f in the ℓ∞ norm. eps and smoothness are numbers or tensors [n].

    ``η = clip(ζ + t* sign(g), [−eps, eps])``: at a distance t, entry i gains ``|gᵢ| min(t, rᵢ)``
    with the room ``rᵢ = eps − sign(gᵢ) ζᵢ``. What remains is concave in t,

        t* = argmax Σᵢ |gᵢ| min(t, rᵢ) − L t²/2 = maxⱼ min(rⱼ, Sⱼ / L),   Sⱼ = Σ |gᵢ| over rᵢ >= rⱼ

    because t* is the largest t at which the slope from the left, ``Σ |gᵢ| over rᵢ >= t``, is
    still at least L t. Where f is L-smooth in the ℓ∞ norm, ``f(η) >= f(ζ)``.
    Raises ValueError unless L > 0 and ``|ζ| <= eps``, and for shapes that differ and NaN.

    >>> import torch
    >>> from lib.attacks import mm_step
    >>> g = torch.tensor([[3.0, -1.0]])
    >>> mm_step(g, torch.zeros(1, 2), eps=1.0, smoothness=8.0).tolist()  # t* = (3 + 1) / 8
    [[0.5, -0.5]]
    """
    eps, L = _each(eps, zeta), _each(smoothness, zeta).reshape(-1, 1)
    room, order = (eps - gradient.sign() * zeta).flatten(1).sort(1, descending=True)
    S = gradient.flatten(1).abs().gather(1, order).cumsum(1)
    t = torch.minimum(room, S / L).amax(1)
    return (zeta + _each(t, zeta) * gradient.sign()).clamp(-eps, eps)


def step_sizes(step_size: StepSize, steps: int) -> list[float]:
    """The step size of each step: a number >= 0 for all of them, or one each.

    Raises ValueError for steps < 1, another number of sizes than steps, and sizes that are
    negative, infinite or NaN.

    >>> from lib.attacks import step_sizes
    >>> step_sizes(0.25, 3), step_sizes([1.0, 0.5], 2)
    ([0.25, 0.25, 0.25], [1.0, 0.5])
    """
    check_counts(steps=steps)
    try:
        alphas = torch.as_tensor(step_size, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"step_size must be a number, or one a step, got {step_size!r}") from None
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
        eta = eta.clone() if eta.is_inference() else eta
        eta = eta.detach().requires_grad_()
        with in_place_refused("f", eta):
            value = f(eta)
        if not isinstance(value, Tensor) or value.shape != eta.shape[:1]:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"f must return one value a sample, {list(eta.shape[:1])}, "
                f'got {got}: a loss needs reduction="none"'
            )
        if not value.requires_grad:
            raise ValueError(
                "f must have a gradient in eta, got values without one: look for detach and no_grad"
            )
        [g] = torch.autograd.grad(value.sum(), eta, materialize_grads=True)
    if not torch.isfinite(g.sum()) and not torch.isfinite(g).all():
        raise FloatingPointError("f's gradient is not finite: look for NaN and infinity in f")
    return g


def steepest_step(gradient: Tensor, step: Ball, eta: Tensor, low: Bound, high: Bound) -> Tensor:
    """η plus the move within the ball ``step`` that gains most along the gradient."""
    if isinstance(step, L1):
        # One pixel takes the whole ℓ1 step, unless it is full: then the next one has the rest.
        low, high = (c if c is None else c - eta for c in (low, high))
    else:  # the box comes in when the sum is projected
        low = high = None
    if isinstance(step, LInf) and isinstance(step.eps, float):
        moved = gradient.sign()
        return torch.add(eta, moved, alpha=step.eps, out=moved)  # the same, in fewer passes
    return step.lmo(gradient, low, high, check=False).add_(eta)


def projection(ball: Ball, like: Tensor, low: Bound, high: Bound) -> Function:
    """``v -> ball.project(v, low, high)``, prepared for many v that it may overwrite."""
    if not isinstance(ball, LInf):
        return lambda v: ball.project(v, low, high, check=False)
    # The ℓ∞ ball is a box, and so is what it shares with a box: one clamp projects on both.
    eps = ball.radius(like).expand_as(like)
    least, most = clip(-eps, low, None), clip(eps, None, high)
    return lambda v: v.clamp_(least, most)
