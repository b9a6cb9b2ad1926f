"""Generators and critics for generative adversarial networks (slides 37, 38 and 41).

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

from lib.checks import check_counts
from lib.models import mlp, weights_from

Noise = Callable[..., Tensor]  # (n, generator=None) -> [n, ...]


def gaussian(dim: int) -> Noise:
    """The noise distribution ``p_Ω = N(0, I)`` in R^dim: (n, generator=None) -> [n, dim].

    It draws on the generator's device, or without one from torch's own on the CPU.
    Raises ValueError for dim < 1.

    >>> import torch
    >>> from lib.gan import gaussian
    >>> gaussian(2)(3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    check_counts(dim=dim)

    def noise(n: int, generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator else torch.device("cpu")
        return torch.randn(n, dim, generator=generator, device=device)

    return noise


def point_generator(
    noise_dim: int = 2, dim: int = 2, hidden: Sequence[int] = (128, 128), *, seed: int = 0
) -> nn.Sequential:
    """``h_x: R^noise_dim -> R^dim``, a ReLU network: [n, noise_dim] -> [n, dim] (slide 38).

    hidden: the widths of its hidden layers. Raises ValueError for sizes that are not >= 1.

    >>> import torch
    >>> from lib.gan import point_generator
    >>> point_generator(3, 2, hidden=(8,))(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """
    check_counts(noise_dim=noise_dim, dim=dim)
    return mlp((noise_dim,), hidden, dim, mean=0.0, std=1.0, seed=seed)


def point_critic(
    dim: int = 2, hidden: Sequence[int] = (128, 128), *, seed: int = 0
) -> nn.Sequential:
    """``d_y: R^dim -> R``, a ReLU network: [n, dim] -> [n, 1] (slide 38).

    hidden: the widths of its hidden layers. Raises ValueError for sizes that are not >= 1.

    >>> import torch
    >>> from lib.gan import point_critic
    >>> point_critic(2, hidden=(8,))(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """
    check_counts(dim=dim)
    return mlp((dim,), hidden, 1, activation="masked relu", mean=0.0, std=1.0, seed=seed)


def image_generator(noise_dim: int = 32, channels: int = 32, *, seed: int = 0) -> nn.Sequential:
    """Noise [n, noise_dim] -> images [n, 1, 28, 28] in (0, 1), from 7 × 7 by two doublings.

    channels: of the hidden layer of 14 × 14; twice as many at 7 × 7. Slide 38.
    Raises ValueError for sizes that are not >= 1.

    >>> import torch
    >>> from lib.gan import image_generator
    >>> image_generator(4, channels=2)(torch.zeros(5, 4)).shape
    torch.Size([5, 1, 28, 28])
    """
    check_counts(noise_dim=noise_dim, channels=channels)
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
    """Images [n, 1, 28, 28] -> [n, 1], by two halvings to 7 × 7.

    channels: of the hidden layer of 14 × 14; twice as many at 7 × 7. Slide 38.
    Raises ValueError for channels < 1.

    >>> import torch
    >>> from lib.gan import image_critic
    >>> image_critic(channels=2)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 1])
    """
    check_counts(channels=channels)
    with weights_from(seed):
        return nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * channels * 49, 1),
        )
