"""Updates: what ``training.fit`` minimizes, each as the gradient that one minibatch gives.

===============  ======================================================  ==============
``erm``          ``(1/n) Σ L(h_x(a_i), b_i)``                                slide 5
``adversarial``  ``(1/n) Σ max L(h_x(a_i + η), b_i)`` over ``‖η‖ <= eps``    slides 16, 23
``danskin``      the same, along the steepest of k maximizers' directions    slide 22
===============  ======================================================  ==============

``update(model, a, b)`` sets every parameter's ``.grad`` for the minibatch a [m, ...], b [m] and
returns the mean loss, detached. It finds the model in training mode and leaves it so. One that
draws random numbers shows its generators as ``update.generators``, and one that changes from step
to step its state by ``state_dict`` and ``load_state_dict``, so that a checkpoint holds them. On
several processes (lib.runs.processes) a and b are this one's share of the minibatch, and gradients
and loss are averaged. Losses map (logits [m, classes], labels [m]) to [m], one value a sample.
Updates that move the parameters, such as SAM, are in ``_sharpness_aware``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.attacks import Loss, StepSize, cross_entropy, loss_of, pga
from lib.attacks._ascent import step_sizes
from lib.balls import Ball
from lib.danskin import gradients, min_norm_point
from lib.runs import processes

Update = Callable[[nn.Module, Tensor, Tensor], Tensor]  # sets .grad, returns the mean loss


def erm(loss: Loss = cross_entropy) -> Update:
    """Empirical risk minimization: the gradient of ``(1/m) Σ L(h_x(a_i), b_i)`` (slide 5, def-erm).

    The sum is over the minibatch, so that in expectation it is the gradient of the risk R_n.
    loss: (logits [m, classes], labels [m]) -> [m]; one that returns another shape, such as the
    batch's mean, is refused with a ValueError.
    """

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        risk = mean_loss(model, a, b, loss)
        risk.backward()
        return averaged(model, risk.detach())  # over the processes, if there are several

    return update


def adversarial(
    attack: Callable[..., Tensor],
    *,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Update:
    """Adversarial training: the mean gradient at each sample's worst input (slide 23, Madry 2018).

    Steps iii.a and iii.b of the slide: ``η_i`` by the attack, then the gradient in x of
    ``(1/m) Σ L(h_x(a_i + η_i), b_i)`` with the η_i held fixed. At exact maximizers it is
    a subgradient of the robust loss if the loss is convex in x (slide 19, thm-danskin-convex), and
    of a weakly convex function if its gradient in x is Lipschitz (prop-weakly-convex); at other
    points it is a gradient of a lower bound.

    attack: (model, a, b) -> inputs like a, for instance
    ``functools.partial(attacks.attack, ball=LInf(0.1), steps=7)``. It sees the model in
    evaluation mode, so that batch norm's statistics and dropout take no part in the search; the
    gradient is then taken in training mode.
    generator: passed to the attack, as ``generator=``, if given, on several processes a child of it
    to each; an attack without random numbers needs none.
    Raises ValueError if the attack returns another shape than a's, or the loss another than [m].
    """
    descend = erm(loss)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        own = {} if generator is None else {"generator": processes.child(generator)}
        with _searched(model):
            worst = attack(model, a, b, **own)
        if worst.shape != a.shape:
            raise ValueError(
                f"attack must return inputs a + η {list(a.shape)}, got {list(worst.shape)}"
            )
        return descend(model, worst.detach(), b)

    update.generators = () if generator is None else (generator,)
    return update


def danskin(
    ball: Ball,
    *,
    k: int = 10,
    steps: int = 7,
    step_size: StepSize | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    weight_decay: float = 0.0,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Update:
    """DDi: the shortest vector in the hull of the gradients at k attacks (slide 22).

    The attacks are k runs of steepest PGA (slide 14) on the whole minibatch, from random points
    of the ball and the box; their gradients g_i are those of the minibatch's mean loss at the k
    attacked minibatches. ``.grad`` is the min-norm point g of their hull, at its own length, so
    that SGD with momentum acts on it as on a gradient. -g lowers each of the k losses, at the rate
    ‖g‖² or more, and is the steepest direction of the robust loss if the k attacks are all its
    maximizers (prop-ddi; Latorre et al., ICLR 2023). With k = 1 it is ``adversarial`` with a
    random start.

    step_size: a number, one a step, or None for ``2.5 eps / steps`` (Madry et al., 2018).
    weight_decay: c adds ``c/2 ‖x‖²`` to the loss, that is c·x to each g_i before the hull is
    formed, which an optimizer's own weight decay would do afterwards.
    generator: draws the k starts; None makes one with seed 0. Returns the greatest of the k mean
    losses, without the weight decay.
    watch: is shown the k gradients [k, p] of each step, with the weight decay, to look at.

    The attacks see the model in evaluation mode. The gradients are taken in training mode: batch
    norm uses the statistics of each attacked minibatch for its own g_i, and its running
    statistics move once a step, by the first of them. Memory: one minibatch's graph and k rows
    of p numbers. Raises ValueError for k < 1, steps < 1, a radius a sample, and bad step sizes.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if torch.is_tensor(ball.eps) and ball.eps.dim():
        raise ValueError(f"eps must be one number for all minibatches, got {list(ball.eps.shape)}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if step_size is None:
        step_size = 2.5 * float(ball.eps) / max(steps, 1)
    alphas = step_sizes(step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        f, low, high = loss_of(model, a, b, loss=loss), bounds[0] - a, bounds[1] - a
        attacked = []
        with _searched(model):
            for _ in range(k):
                start = processes.drawn(ball.sample, tuple(a.shape), generator).to(a)
                start = ball.project(start, low, high)
                eta = pga(f, start, ball, alphas, steps, low, high, steepest=True)
                attacked.append((a + eta).clamp(*bounds))
        g, losses = gradients(model, attacked, b, loss, return_losses=True)
        processes.mean_([g, losses])
        trained = trained_parameters(model)
        if weight_decay:
            g += weight_decay * torch.cat([p.detach().flatten() for p in trained])
        if watch is not None:
            watch(g)
        finite = torch.isfinite(g.sum())  # else pass it on: fit stops and says what to try
        weights = min_norm_point(g) if finite else torch.full_like(losses, 1 / k)
        model.zero_grad(set_to_none=True)
        with torch.autocast(g.device.type, enabled=False):
            parts = (weights @ g).split([p.numel() for p in trained])
        for p, part in zip(trained, parts, strict=True):
            p.grad = part.view_as(p)
        return losses.max()

    update.generators = (generator,)
    return update


def mean_loss(model: nn.Module, a: Tensor, b: Tensor, loss: Loss) -> Tensor:
    """``(1/m) Σ L(h_x(a_i), b_i)`` with its graph; ValueError unless loss gives one value each."""
    losses = loss(model(a), b)
    if losses.shape != b.shape:
        raise ValueError(
            f"loss must return one value a sample, {list(b.shape)}, got {list(losses.shape)}: "
            'use reduction="none"'
        )
    return losses.mean()


def averaged(model: nn.Module, risk: Tensor) -> Tensor:
    """Every ``.grad``, and the loss, as the mean over the processes' shares of the minibatch."""
    processes.mean_([p.grad for p in trained_parameters(model) if p.grad is not None] + [risk])
    return risk


@contextmanager
def _searched(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and the parameters ask for no gradient: then in training mode again.

    A compiled model's backward pass makes the gradients of all that asks for one.
    """
    trained = trained_parameters(model)
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train()
        for p in trained:
            p.requires_grad_(True)


def trained_parameters(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]
