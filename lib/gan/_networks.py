"""The two players of a generative adversarial network (slides 37, 38 and 41).

A generator h_x maps noise to samples, a critic d_y samples to one number each, [n, 1]; the
vanilla GAN's discriminator is a critic whose number is a logit. A critic here is an
``nn.Sequential`` of layers that lib.lipschitz knows, without normalization over the batch, which
would let the samples of a batch see one another.

    point_generator, point_critic     fully connected, for points in R^d
    image_generator, image_critic     convolutions, for images of 28 × 28 pixels in [0, 1]

The initial weights depend on ``seed`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.models import mlp, weights_from

Noise = Callable[..., Tensor]  # (n, generator=None) -> [n, ...]


def gaussian(dim: int) -> Noise:
    """The noise distribution ``p_Ω = N(0, I)`` in R^dim: (n, generator=None) -> [n, dim]."""
    if dim < 1:
        raise ValueError(f"dim must be >= 1, got {dim}")

    def noise(n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, dim, generator=generator)

    return noise


def point_generator(
    noise_dim: int = 2, dim: int = 2, hidden: Sequence[int] = (128, 128), *, seed: int = 0
) -> nn.Sequential:
    """``h_x: R^noise_dim -> R^dim``, a ReLU network."""
    return mlp((noise_dim,), hidden, dim, mean=0.0, std=1.0, seed=seed)


def point_critic(
    dim: int = 2, hidden: Sequence[int] = (128, 128), *, seed: int = 0
) -> nn.Sequential:
    """``d_y: R^dim -> R``, a ReLU network: [n, dim] -> [n, 1]."""
    return mlp((dim,), hidden, 1, activation="masked relu", mean=0.0, std=1.0, seed=seed)


def image_generator(noise_dim: int = 32, channels: int = 32, *, seed: int = 0) -> nn.Sequential:
    """Noise [n, noise_dim] -> images [n, 1, 28, 28] in (0, 1), from 7 × 7 by two doublings."""
    with weights_from(seed):
        return nn.Sequential(
            nn.Linear(noise_dim, 2 * channels * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * channels, 7, 7)),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )


def image_critic(channels: int = 32, *, seed: int = 0) -> nn.Sequential:
    """Images [n, 1, 28, 28] -> [n, 1], by two halvings to 7 × 7."""
    with weights_from(seed):
        return nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * channels * 49, 1),
        )
