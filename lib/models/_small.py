"""The linear classifier and the small networks (slides 5, 8 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from lib.models._layers import (
    ACTIVATIONS,
    MNIST_MEAN,
    MNIST_STD,
    Channels,
    Normalize,
    choice_of,
    sizes_of,
    weights_from,
)


def linear(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    bias: bool = True,
    mean: Channels = MNIST_MEAN,
    std: Channels = MNIST_STD,
    seed: int = 0,
) -> nn.Sequential:
    """``h_x(a) = W a + w`` on normalized pixels: [n, *shape] -> [n, classes] (slide 8).

    With ``classes=1, bias=False, mean=0, std=1`` it is the slide's ⟨x, a⟩, as [n, 1].
    prod(shape) · classes weights, and classes biases: 7,850 for digits.
    Raises ValueError for sizes that are not positive.

    >>> import torch
    >>> from lib.models import linear
    >>> linear((3,), 1, bias=False, mean=0, std=1)(torch.zeros(2, 3)).tolist()
    [[0.0], [0.0]]
    """
    return mlp(shape, (), classes, bias=bias, mean=mean, std=std, seed=seed)


def mlp(
    shape: Sequence[int] = (1, 28, 28),
    hidden: Sequence[int] = (200,),
    classes: int = 10,
    *,
    activation: str = "relu",
    bias: bool = True,
    mean: Channels = MNIST_MEAN,
    std: Channels = MNIST_STD,
    seed: int = 0,
) -> nn.Sequential:
    """A fully connected network: [n, *shape] -> [n, classes] (slides 5 and 10).

    One layer for each width in ``hidden``, each followed by the activation, "relu", "masked relu"
    or "celu"; celu is continuously differentiable. 159,010 parameters for digits and one layer of
    200.
    Raises ValueError for sizes that are not positive and for unknown activations.

    >>> import torch
    >>> from lib.models import mlp
    >>> mlp((1, 8, 8), hidden=(50, 20), classes=3)(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 3])
    """
    shape, hidden = sizes_of("shape", shape), sizes_of("hidden", hidden)
    (classes,) = sizes_of("classes", [classes])
    act = choice_of("activation", activation, ACTIVATIONS)
    widths = [prod(shape), *hidden]
    with weights_from(seed):
        layers: list[nn.Module] = [Normalize(shape, mean, std), nn.Flatten()]
        for width, following in zip(widths, hidden, strict=False):
            layers += [nn.Linear(width, following, bias=bias), act()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes, bias=bias))


def cnn(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    activation: str = "relu",
    mean: Channels = MNIST_MEAN,
    std: Channels = MNIST_STD,
    seed: int = 0,
) -> nn.Sequential:
    """Two convolutions and two linear layers: [n, c, h, w] -> [n, classes] (slide 10).

    16, then 32 channels of 4x4 kernels with stride 2, and a hidden layer of 100: the small
    network of Wong and Kolter (2018, arXiv:1711.00851). 166,406 parameters for digits.
    Raises ValueError for images smaller than 4x4, sizes that are not positive and unknown
    activations.

    >>> from lib.models import cnn
    >>> sum(weights.numel() for weights in cnn().parameters())
    166406
    """
    shape = sizes_of("shape", shape)
    (classes,) = sizes_of("classes", [classes])
    act = choice_of("activation", activation, ACTIVATIONS)
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ValueError(f"shape must be (channels, height, width) of 4x4 or more, got {shape}")
    channels, height, width = shape
    with weights_from(seed):
        return nn.Sequential(
            Normalize(shape, mean, std),
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            act(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            act(),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 100),
            act(),
            nn.Linear(100, classes),
        )
