"""Updates that look for flat minima: the gradient at parameters that were moved uphill (slide 43).

``sharpness_aware``   ``max (1/n) Σ L(h_{x+η}(a_i), b_i)`` over ``‖η‖₂ <= rho``   slides 43-44
``ball_stability``    the same, with several steps for η                          slides 6, 43

They are updates as erm is. How sharp a minimum is lib.sharpness measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.attacks import Loss, StepSize, cross_entropy
from lib.attacks._ascent import step_sizes
from lib.balls import L2
from lib.training._updates import Update, averaged, erm, mean_loss, trained_parameters

COPIES = 2**25  # numbers that the copies of the parameters may hold at a time, one copy a sample


def sharpness_aware(rho: float, *, loss: Loss = cross_entropy, per_sample: bool = False) -> Update:
    """SAM: the gradient at ``x + η, η = rho g / ‖g‖₂, g = ∇R(x)`` (slide 44, Foret et al. 2021).

    R is the minibatch's mean loss, and η maximizes its tangent over the ℓ2 ball of radius rho in
    the space of all parameters (slide 8: a linear maximization; def-sam). η is held fixed in the
    second gradient. Where ``g = 0`` the tangent is flat and η = 0; with rho = 0 it is erm. Two
    gradients a step.

    per_sample: the slide's form, ``(1/m) Σ ∇L_i(x + η_i)`` with ``η_i = rho ∇L_i / ‖∇L_i‖₂``; it
    works on copies of the parameters, one a sample, at most COPIES numbers of them at a time.
    Returns the mean loss at the perturbed parameters. Parameters and buffers are put back, bit
    for bit; running statistics of batch norm see the first pass alone, which is at x. Dropout
    draws anew in each pass.
    Raises ValueError for rho < 0, and per sample for batch norm, whose samples see each other.
    """
    ball, descend = _ball("rho", rho), erm(loss)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        risk = descend(model, a, b)
        if rho > 0:
            with _moved(model, ball.lmo(_gradient(model))):
                risk = descend(model, a, b)
        return risk

    def update_per_sample(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
            raise ValueError(
                "per_sample=True needs samples that do not see each other, and batch norm mixes "
                'them: use per_sample=False, or another normalization (resnet18(norm="group"))'
            )
        x = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

        def one(x: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
            return mean_loss(lambda a: functional_call(model, x, (a,)), a[None], b[None], loss)

        at = torch.func.grad_and_value(one)
        risk = torch.zeros((), device=a.device)
        total = {name: torch.zeros_like(p) for name, p in x.items()}
        size = max(1, COPIES // sum(p.numel() for p in x.values()))
        for a_part, b_part in zip(a.split(size), b.split(size), strict=True):
            g, _ = vmap(at, (None, 0, 0), randomness="different")(x, a_part, b_part)
            eta = ball.lmo(torch.cat([g[name].flatten(1) for name in x], 1))  # [m, p]: a row each
            moved = dict(zip(x, map(torch.add, x.values(), _split(eta, x.values())), strict=True))
            g, losses = vmap(at, randomness="different")(moved, a_part, b_part)
            total = {name: total[name] + g[name].sum(0) for name in x}
            risk = risk + losses.sum()
        model.zero_grad(set_to_none=True)
        for name in x:
            model.get_parameter(name).grad = total[name] / len(b)
        return averaged(model, risk / len(b))

    return update_per_sample if per_sample else update


def ball_stability(
    eps: float,
    *,
    steps: int,
    step_size: StepSize | None = None,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Update:
    """The gradient at the worst parameters found in ``‖η‖₂ <= eps``: ε-stability (slides 6, 43).

    Proximal gradient ascent (slide 12) on ``R(x + η)``, the minibatch's mean loss, along unit
    gradients: ``η ← project(η + αᵢ ∇R(x + η) / ‖∇R(x + η)‖₂)``. Of x and all points met the one
    of highest loss counts, so that with one step it is sharpness_aware wherever SAM's step raises
    the loss, and erm elsewhere. ``steps + 1`` gradients a step, one more with a generator.

    step_size: a number, one a step, or None for ``αᵢ = eps (1 + cos(π i / steps))``.
    generator: draws the point where the ascent begins, uniformly in the ball; None begins at
    η = 0, and stays there if x is stationary.
    Returns the mean loss at the worst point. Parameters, buffers and batch norm as in
    sharpness_aware. Raises ValueError for eps < 0, steps < 1 and bad step sizes.
    """
    ball, descend = _ball("eps", eps), erm(loss)
    if step_size is None and steps >= 1:
        step_size = [eps * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    along = [L2(alpha) for alpha in step_sizes(0.0 if step_size is None else step_size, steps)]

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        best = descend(model, a, b)
        worst, g = [p.grad for p in model.parameters()], _gradient(model)
        eta = torch.zeros_like(g)
        for step in ([] if generator is None else [None]) + along:
            if step is None:
                eta = ball.sample(g.shape, generator).to(g)
            else:
                eta = ball.project(eta + step.lmo(g))
            with _moved(model, eta):
                risk = descend(model, a, b)
            g = _gradient(model)
            if not risk <= best:  # NaN counts as worst: fit then says what to try
                best, worst = risk, [p.grad for p in model.parameters()]
        for p, gradient in zip(model.parameters(), worst, strict=True):
            p.grad = gradient
        return best

    update.generators = () if generator is None else (generator,)
    return update


def _ball(name: str, radius: float) -> L2:
    if not 0 <= radius < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {radius}")
    return L2(radius)


def _gradient(model: nn.Module) -> Tensor:
    """Every ``.grad`` as one row [1, p], the gradient of a function of p parameters."""
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained_parameters(model)]
    return torch.cat([row.flatten() for row in rows])[None]


def _split(eta: Tensor, x: Iterable[Tensor]) -> list[Tensor]:
    """Rows [m, p] as one tensor [m, *shape] for each parameter of x."""
    shapes = [p.shape for p in x]
    parts = eta.split([shape.numel() for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def _moved(model: nn.Module, eta: Tensor) -> Iterator[None]:
    """The model at x + η, η [1, p]; then its parameters and buffers are put back, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            x = trained_parameters(model)
            for p, [e] in zip(x, _split(eta, x), strict=True):
                p.add_(e)
        torch.clear_autocast_cache()  # autocast's copies of the weights are of those before
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
        torch.clear_autocast_cache()
