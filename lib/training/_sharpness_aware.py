"""Updates that look for flat minima: the gradient at parameters that were moved uphill (slide 43).

``sharpness_aware``   ``max (1/n) Σ L(h_{x+η}(a_i), b_i)`` over ``‖η‖₂ <= rho``   slides 43-44
``ball_stability``    the same, with several steps for η                          slides 6, 43

They are updates as erm is. How sharp a minimum is lib.sharpness measures.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.attacks import Loss, StepSize, cross_entropy, step_sizes
from lib.balls import L2
from lib.checks import check_counts, check_number
from lib.training._gradients import (
    averaged,
    check_differentiable,
    check_generator,
    gradient_row,
    mean_loss,
    moved,
    risk_gradient,
    set_gradient,
    sharpness_aware_gradient,
    split_rows,
)
from lib.training._updates import Update

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

    >>> sharpness_aware(0.05, per_sample=True).settings["rho"]
    0.05
    """
    _ball("rho", rho)
    gradient = partial(sharpness_aware_gradient, rho=rho, loss=loss)
    if per_sample:
        gradient = partial(sharpness_aware_gradient_per_sample, rho=rho, loss=loss)
    elif rho == 0:
        gradient = partial(risk_gradient, loss=loss)
    settings = {"name": "sharpness_aware", "rho": rho, "per_sample": per_sample, "loss": loss}
    return Update(gradient, settings)


def sharpness_aware_gradient_per_sample(
    model: nn.Module, a: Tensor, b: Tensor, rho: float, loss: Loss = cross_entropy
) -> Tensor:
    """The mean of ``∇L_i(x + η_i), η_i = rho ∇L_i / ‖∇L_i‖₂`` (slide 44's form).

    Raises ValueError for batch norm. A layer that is used under two names counts once.

    >>> model, a, b = nn.Linear(2, 3), torch.rand(4, 2), torch.arange(4) % 3
    >>> up = sharpness_aware_gradient_per_sample(model, a, b, 0.05)
    >>> bool(up > sharpness_aware_gradient_per_sample(model, a, b, 0.0))
    True
    """
    _refuse_batch_norm(model)
    x = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    places = _places(model)

    def one(x: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        put = {place: x[name] for place, name in places.items()}
        at_x = partial(functional_call, model, put, tie_weights=False)
        risk = mean_loss(at_x, a[None], b[None], loss)
        check_differentiable(risk)
        return risk

    at = torch.func.grad_and_value(one)
    risk = torch.zeros((), device=a.device)
    total = {name: torch.zeros_like(p) for name, p in x.items()}
    size = max(1, COPIES // sum(p.numel() for p in x.values()))
    for a_part, b_part in zip(a.split(size), b.split(size), strict=True):
        g, _ = vmap(at, (None, 0, 0), randomness="different")(x, a_part, b_part)
        eta = L2(rho).lmo(torch.cat([g[name].flatten(1) for name in x], 1))  # [m, p]: a row each
        there = dict(zip(x, map(torch.add, x.values(), split_rows(eta, x.values())), strict=True))
        g, losses = vmap(at, randomness="different")(there, a_part, b_part)
        total = {name: total[name] + g[name].sum(0) for name in x}
        risk = risk + losses.sum()
    set_gradient(model, torch.cat([total[name].flatten() for name in x]) / len(b))
    return averaged(model, risk / len(b))


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
    generator: draws the point where the ascent begins, uniformly in the ball, on the CPU; None
    begins at η = 0, and stays there if x is stationary.
    Returns the mean loss at the worst point. Parameters, buffers and batch norm as in
    sharpness_aware. Raises ValueError for eps < 0, steps < 1 and bad step sizes.

    >>> ball_stability(0.5, steps=2).settings["step_size"]
    [1.0, 0.5]
    """
    ball = _ball("eps", eps)
    check_counts(steps=steps)
    check_generator(generator)
    if step_size is None:
        step_size = [eps * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    alphas = step_sizes(step_size, steps)

    def gradient(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        best = risk_gradient(model, a, b, loss)
        worst, g = [p.grad for p in model.parameters()], gradient_row(model)
        eta, lengths = torch.zeros_like(g), alphas
        if generator is not None:  # its gradient is not known yet: the first step has length 0
            eta, lengths = ball.sample(g.shape, generator).to(g), [0.0, *alphas]
        for length in lengths:
            eta = ball.project(eta + L2(length).lmo(g))
            with moved(model, eta):
                risk = risk_gradient(model, a, b, loss)
            g = gradient_row(model)
            if not risk <= best:  # NaN counts as worst: fit then says what to try
                best, worst = risk, [p.grad for p in model.parameters()]
        for p, found in zip(model.parameters(), worst, strict=True):
            p.grad = found
        return best

    settings = {"name": "ball_stability", "eps": eps, "step_size": alphas, "loss": loss}
    return Update(gradient, settings, () if generator is None else (generator,))


def _ball(name: str, radius: float) -> L2:
    check_number(name, radius)
    return L2(radius)


def _places(model: nn.Module) -> dict[str, str]:
    """Where each trained parameter stands: all its places -> its name among the parameters.

    A layer with two names is one place. (functional_call itself would put the parameters of such
    a layer back wrongly: pytorch#164759.)
    """
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    places = {}
    for path, layer in model.named_modules():
        for name, p in layer.named_parameters(path, recurse=False, remove_duplicate=False):
            if p in names:
                places[name] = names[p]
    return places


def _refuse_batch_norm(model: nn.Module) -> None:
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise ValueError(
            "per_sample=True needs samples that do not see each other, and batch norm mixes "
            'them: use per_sample=False, or another normalization (resnet18(norm="group"))'
        )
