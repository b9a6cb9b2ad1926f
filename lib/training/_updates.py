"""Updates: what ``training.fit`` minimizes, each as the gradient that one minibatch gives.

===============  ======================================================  ==============
``erm``          ``(1/n) Σ L(h_x(a_i), b_i)``                                slide 5
``adversarial``  ``(1/n) Σ max L(h_x(a_i + η), b_i)`` over ``‖η‖ <= eps``    slides 16, 23
``danskin``      the same, along the steepest of k maximizers' directions    slide 22
===============  ======================================================  ==============

``update(model, a, b)`` sets every parameter's ``.grad`` for the minibatch a [m, ...], b [m] and
returns the mean loss, detached. It leaves the model in the mode that it was in. The steps
themselves are in ``_gradients``; those that move the parameters, such as SAM, in
``_sharpness_aware``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lib.attacks import (
    Loss,
    StepSize,
    check_bounds,
    cross_entropy,
    loss_of,
    pga,
    step_sizes,
)
from lib.balls import Ball, check_ball
from lib.checks import check_counts, check_function, check_number
from lib.runs import processes
from lib.training._gradients import (
    adversarial_gradient,
    check_generator,
    danskin_gradient,
    risk_gradient,
)

Gradient = Callable[[nn.Module, Tensor, Tensor], Tensor]  # sets .grad, returns the mean loss
FUNCTIONS = {  # among the settings, and what they may be
    "loss": "lib.attacks.cross_entropy",
    "attack": "partial(lib.attacks.attack, ball=LInf(0.1))",
}


@dataclass(frozen=True)
class Update:
    """What a minibatch does to the gradient, and what a checkpoint has to know of it.

    gradient: (model, a, b) -> the mean loss; it sets every ``.grad``.
    settings: its "name" and all that it depends on, by name; a run goes on from a checkpoint
    only if they are the same. generators: those that it draws from, which a checkpoint keeps.
    state: what changes from step to step, with ``state_dict`` and ``load_state_dict``, or None.

    To wrap an update is to replace its gradient: it keeps the rest.

    >>> from dataclasses import replace
    >>> update = erm()
    >>> darker = replace(update, gradient=lambda model, a, b: update(model, a / 2, b))
    >>> darker.settings["name"]
    'erm'
    """

    gradient: Gradient
    settings: Mapping[str, Any]
    generators: tuple[torch.Generator, ...] = ()
    state: Any = None

    def __post_init__(self) -> None:
        for name, such_as in FUNCTIONS.items():
            if name in self.settings:
                check_function(name, self.settings[name], such_as)

    def __call__(self, model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return self.gradient(model, a, b)


def erm(loss: Loss = cross_entropy) -> Update:
    """Empirical risk minimization: the gradient of ``(1/m) Σ L(h_x(a_i), b_i)`` (slide 5, def-erm).

    The sum is over the minibatch, so that in expectation it is the gradient of the risk R_n.
    loss: (logits [m, classes], labels [m]) -> [m]; one that returns another shape, such as the
    batch's mean, is refused with a ValueError.

    >>> from lib import models
    >>> model, a, b = models.mlp((1, 2, 2), (4,), 3), torch.rand(5, 1, 2, 2), torch.arange(5) % 3
    >>> erm()(model, a, b).requires_grad, model[-1].bias.grad.shape
    (False, torch.Size([3]))
    """
    return Update(partial(risk_gradient, loss=loss), {"name": "erm", "loss": loss})


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

    attack: (model, a, b) -> inputs like a. It sees the model in evaluation mode, so that batch
    norm's statistics and dropout take no part in the search; the gradient is then taken in the
    mode that the model was in, which in fit is training mode.
    generator: passed to the attack, as ``generator=``, if given, on several processes a child of it
    to each; an attack without random numbers needs none.
    Raises ValueError if the attack is no function or returns another shape than a's or NaN, and if
    the loss returns another than [m].

    >>> from lib import attacks, balls
    >>> attack = partial(attacks.attack, ball=balls.LInf(0.1), steps=7)
    >>> adversarial(attack).settings["attack"] is attack
    True
    """

    def gradient(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        if generator is None:
            return adversarial_gradient(model, a, b, attack, loss)
        own = processes.generator_for_this_process(generator)
        return adversarial_gradient(model, a, b, partial(attack, generator=own), loss)

    settings = {"name": "adversarial", "attack": attack, "loss": loss}
    return Update(gradient, settings, () if generator is None else (generator,))


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
    generator: draws the k starts, on the CPU; None makes one with seed 0. Returns the greatest of
    the k mean losses, without the weight decay.
    watch: is shown the k gradients [k, p] of each step, with the weight decay, to look at.

    The attacks see the model in evaluation mode. The gradients are taken in its own mode, in fit
    training mode: batch norm then uses the statistics of each attacked minibatch for its own g_i,
    and its running statistics move once a step, by the first of them. Memory: one minibatch's
    graph and k rows of p numbers. Raises ValueError for k < 1, steps < 1, a radius a sample, and
    bad step sizes.

    >>> from lib.balls import LInf
    >>> danskin(LInf(0.1), k=2, steps=5).settings["step_size"]
    [0.05, 0.05, 0.05, 0.05, 0.05]
    """
    check_ball(ball)
    check_counts(k=k, steps=steps)
    check_bounds(bounds)
    if torch.is_tensor(ball.eps) and ball.eps.dim():
        raise ValueError(f"eps must be one number for all minibatches, got {list(ball.eps.shape)}")
    check_number("weight_decay", weight_decay)
    check_generator(generator)
    if step_size is None:
        step_size = 2.5 * float(ball.eps) / steps
    search: dict[str, Any] = {
        "ball": ball,
        "step_size": step_sizes(step_size, steps),
        "bounds": bounds,
    }
    generator = generator or torch.Generator().manual_seed(0)
    attack = partial(pga_from_random_start, **search, loss=loss, generator=generator)
    more: dict[str, Any] = {"loss": loss, "weight_decay": weight_decay, "watch": watch}
    gradient = partial(danskin_gradient, attack=attack, k=k, **more)
    settings = {"name": "danskin", **search, "k": k, "weight_decay": weight_decay, "loss": loss}
    return Update(gradient, settings, (generator,))


def pga_from_random_start(
    model: nn.Module,
    a: Tensor,
    b: Tensor,
    *,
    ball: Ball,
    step_size: list[float],
    bounds: tuple[float, float],
    loss: Loss,
    generator: torch.Generator,
) -> Tensor:
    """The last iterate a + η of steepest PGA from a random point of ball and box (slide 14)."""
    low, high = bounds[0] - a, bounds[1] - a
    start = processes.draw_local_rows(ball.sample, tuple(a.shape), generator).to(a)
    start = ball.project(start, low, high)
    f = loss_of(model, a, b, loss=loss)
    try:
        eta = pga(f, start, ball, step_size, len(step_size), low, high, steepest=True)
    except FloatingPointError:  # passed on as NaN, so that all processes stop together
        return torch.full_like(a, torch.nan)
    return (a + eta).clamp(*bounds)
