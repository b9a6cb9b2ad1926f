"""Residual networks for 32x32 color images (slides 22, 25 and 43)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lib.models._layers import (
    ACTIVATIONS,
    CIFAR10_MEAN,
    CIFAR10_STD,
    Channels,
    Normalize,
    choice_of,
    sizes_of,
    weights_from,
)

Layer = Callable[[int], nn.Module]  # for a number of channels
Activation = Callable[[], nn.Module]


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(32, channels), channels)


NORMS: dict[str, Layer] = {"batch": nn.BatchNorm2d, "group": _group_norm}


def resnet18(
    classes: int = 10,
    *,
    activation: str = "relu",
    norm: str = "batch",
    mean: Channels = CIFAR10_MEAN,
    std: Channels = CIFAR10_STD,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-18 for 32x32 color images: [n, 3, h, w] -> [n, classes] (slides 22, 25 and 43).

    He et al. (2016, arXiv:1512.03385) in the form used for CIFAR-10: a 3x3 convolution for a
    stem and no max-pooling, then stages of 64, 128, 256 and 512 channels with two blocks each.
    11,173,962 parameters for 10 classes. Convolutions start with He's normal initialization.

    norm: "batch", or "group" (32 groups; no sample sees another, in training neither).
    activation: "relu", or "celu", which is continuously differentiable. CELU with "group" makes
    ``x -> L(h_x(a), b)`` smooth, as the descent directions of slide 22 need.
    Raises ValueError for unknown choices.

    >>> from lib.models import resnet18
    >>> sum(weights.numel() for weights in resnet18(norm="group").parameters())
    11173962
    """
    stages = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
    return _resnet(stages, classes, activation, norm, mean, std, seed)


def resnet8(
    classes: int = 10,
    *,
    activation: str = "relu",
    norm: str = "batch",
    mean: Channels = CIFAR10_MEAN,
    std: Channels = CIFAR10_STD,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-8 for 32x32 color images: [n, 3, h, w] -> [n, classes] (slides 22, 25 and 43).

    The smallest of the CIFAR-10 networks of He et al. (2016, arXiv:1512.03385, section 4.2, with
    n = 1): a 3x3 convolution for a stem, then stages of 16, 32 and 64 channels with one block
    each. Where they pad the shortcut with zeros, it has a 1x1 convolution, as in resnet18. 78,042
    parameters for 10 classes. A CPU core trains it some twenty times as fast as resnet18.

    norm, activation: as in resnet18; "group" makes as many groups as channels where these are
    fewer than 32. Raises ValueError for unknown choices.

    >>> import torch
    >>> from lib.models import resnet8
    >>> resnet8().eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _resnet(((16, 1), (32, 2), (64, 2)), classes, activation, norm, mean, std, seed)


def _resnet(
    stages: Sequence[tuple[int, int]],
    classes: int,
    activation: str,
    norm: str,
    mean: Channels,
    std: Channels,
    seed: int,
) -> nn.Sequential:
    """A stem as wide as the first block, a block for each (channels, stride), and the classes."""
    (classes,) = sizes_of("classes", [classes])
    act = choice_of("activation", activation, ACTIVATIONS)
    normalization = choice_of("norm", norm, NORMS)
    width = stages[0][0]
    with weights_from(seed):
        layers: list[nn.Module] = [Normalize((3, 32, 32), mean, std)]
        layers += [*_convolution(3, width, 3, 1, normalization), act()]
        for channels, stride in stages:
            layers.append(_Block(width, channels, stride, normalization, act))
            width = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(*layers)


class _Block(nn.Module):
    """``act(F(a) + shortcut(a))``, F two 3x3 convolutions, each normalized."""

    def __init__(
        self, width: int, channels: int, stride: int, normalization: Layer, act: Activation
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(width, channels, 3, stride, normalization),
            act(),
            *_convolution(channels, channels, 3, 1, normalization),
        )
        # Where the size changes, a 1x1 convolution takes the place of the identity.
        same = stride == 1 and width == channels
        self.shortcut = nn.Sequential(
            *([] if same else _convolution(width, channels, 1, stride, normalization))
        )
        self.act = act()

    def forward(self, a: Tensor) -> Tensor:
        return self.act(self.residual(a) + self.shortcut(a))


def _convolution(
    width: int, channels: int, kernel: int, stride: int, normalization: Layer
) -> list[nn.Module]:
    """A convolution without bias (the normalization has one) and its normalization."""
    layer = nn.Conv2d(width, channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [layer, normalization(channels)]
