"""The algorithm of slide 40, line by line, as corrected (alg-wgan).

    training_round    M steps of the critic, then one of the generator
    critic_step       ascent on the critic's parameters y, then the constraint on them
    generator_step    descent on the generator's parameters x

Unlike on the slide the critic is initialized once, and goes on from where it was. What is ascended
and descended is an ``Objective``; ``train_wgan`` and ``train_gan`` call these same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lib.checks import check_counts
from lib.gan._checks import Network, check_numbers

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Objective:
    """What critic and generator optimize, as functions of the critic's numbers on samples.

    critic_value: (numbers on real [K], on fake [K]) -> V_K, a scalar, which the critic maximizes.
    generator_loss: (numbers on fake [B]) -> ℓ_B, a scalar, which the generator minimizes.
    penalty: (real [K, ...], fake [K, ...]) -> a scalar, subtracted from V_K where the critic
    ascends; None: no penalty. constrain: enforces a constraint on the critic, in place, after each
    of its steps; None: no constraint. ``wgan_objective`` and ``gan_objective`` make those of
    slides 39 and 41.

    >>> import torch
    >>> from lib.gan import Objective
    >>> wgan = Objective(lambda real, fake: real.mean() - fake.mean(), lambda fake: -fake.mean())
    >>> wgan.critic_value(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])).item()
    1.0
    """

    critic_value: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor, Tensor], Tensor] | None = None
    constrain: Callable[[], None] | None = None


def critic_step(
    objective: Objective,
    generator: Network,
    critic: Network,
    draw_noise: Draw,
    draw_real: Draw,
    optimizer: Optimizer,
) -> Tensor:
    """``y ← y + γ ∇_y V_K(y)``, then the constraint on y: slide 40's inner loop, once.

    generator: noise [K, ...] -> samples [K, ...]; critic: samples [n, ...] -> [n] or [n, 1].
    draw_noise() and draw_real() draw anew, K of each. optimizer: holds y, and γ.
    Returns V_K, without the penalty, at the y before the step. Raises ValueError where samples
    or numbers do not fit together.

    >>> import torch
    >>> from lib.gan import critic_step, wgan_objective
    >>> h, d = torch.nn.Identity(), torch.nn.Linear(1, 1, bias=False)
    >>> zeros, ones, sgd = torch.zeros(4, 1), torch.ones(4, 1), torch.optim.SGD(d.parameters(), 9.0)
    >>> _ = critic_step(wgan_objective(d, "clip"), h, d, lambda: zeros, lambda: ones, sgd)
    >>> round(d.weight.item(), 4)
    0.01
    """
    with torch.no_grad():  # x stays as it is
        fake = generator(draw_noise())  # ω_1, ..., ω_K ~ p_Ω
    real = draw_real()  # r_1, ..., r_K ~ μ̂_n
    of_real, of_fake = _numbers(critic, real, fake)
    value = objective.critic_value(of_real, of_fake)  # V_K(y)
    penalty = objective.penalty(real, fake) if objective.penalty else 0.0
    _descend(optimizer, penalty - value)  # y ← y + γ ∇_y [V_K(y) − penalty]
    if objective.constrain:
        objective.constrain()  # d_y near 1-Lipschitz
    return value.detach()


def generator_step(
    objective: Objective,
    generator: Network,
    critic: Network,
    draw_noise: Draw,
    optimizer: Optimizer,
) -> Tensor:
    """``x ← x − α ∇_x ℓ_B(x)``: slide 40's step of the generator.

    The arguments are those of ``critic_step``; draw_noise() draws B, and the optimizer holds x,
    and α. Returns ℓ_B at the x before the step.

    >>> import torch
    >>> from lib.gan import generator_step, wgan_objective
    >>> h, d = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    >>> sgd, before = torch.optim.SGD(h.parameters(), 0.1), h.bias.detach().clone()
    >>> _ = generator_step(wgan_objective(d, "clip"), h, d, lambda: torch.zeros(4, 1), sgd)
    >>> torch.allclose(h.bias, before + 0.1 * d.weight)  # for d(a) = y a + c the gradient is −y
    True
    """
    fake = generator(draw_noise())  # new ω_1, ..., ω_B ~ p_Ω
    loss = objective.generator_loss(critic(fake))  # ℓ_B(x)
    _descend(optimizer, loss)  # x ← x − α ∇_x ℓ_B(x)
    return loss.detach()


def training_round(
    objective: Objective,
    generator: Network,
    critic: Network,
    draw_noise: Draw,
    draw_real: Draw,
    generator_optimizer: Optimizer,
    critic_optimizer: Optimizer,
    critic_steps: int = 5,
) -> tuple[Tensor, Tensor]:
    """``critic_steps`` (M) steps of the critic, then one of the generator: slide 40's outer loop.

    The arguments are those of the two steps. Returns V_K of the last critic step, and ℓ_B.
    Raises ValueError for critic_steps < 1.

    >>> import torch
    >>> from lib.gan import point_critic, point_generator, training_round, wgan_objective
    >>> h, d = point_generator(), point_critic()
    >>> adam = [torch.optim.Adam(network.parameters(), 1e-3) for network in (h, d)]
    >>> draws = lambda: torch.zeros(8, 2), lambda: torch.ones(8, 2)
    >>> value, loss = training_round(wgan_objective(d), h, d, *draws, *adam)
    >>> value.shape, loss.shape
    (torch.Size([]), torch.Size([]))
    """
    check_counts(critic_steps=critic_steps)
    for _ in range(critic_steps):
        value = critic_step(objective, generator, critic, draw_noise, draw_real, critic_optimizer)
    loss = generator_step(objective, generator, critic, draw_noise, generator_optimizer)
    return value, loss


def _numbers(critic: Network, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's numbers on both, in one pass: it is wider, and so quicker, than two."""
    if real.shape != fake.shape:
        raise ValueError(
            f"the generator makes {list(fake.shape)}, real are {list(real.shape)}: "
            "both must have the same shape"
        )
    numbers = critic(torch.cat([real, fake]))
    check_numbers(numbers, 2 * len(real))
    return numbers[: len(real)], numbers[len(real) :]


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    """One step down the loss, by the gradient of the optimizer's own parameters alone."""
    held = (p for group in optimizer.param_groups for p in group["params"])
    optimizer.zero_grad()
    loss.backward(inputs=[p for p in held if p.requires_grad])
    optimizer.step()
