"""The classifiers h_x that the slides train and attack (slides 5, 8, 10 and 22).

A model takes pixels in [0, 1], normalizes them inside, and returns logits [n, classes]. So a
radius is always in pixel units, and no caller has to know a mean or a standard deviation.

    linear      h_x(a) = W a + w           the robustness example of slide 8
    mlp, cnn    small networks             the digits of slide 10
    resnet18    for 32x32 color images     the experiments of slides 22, 25 and 43
    resnet8     a small one, for a CPU     the same, on one core

The initial weights depend on ``seed`` alone, and torch's global generator is left as it was.
Models are returned in training mode, as torch makes them; call ``.eval()`` before an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn

Channels = float | Sequence[float]  # one number for all channels, or one a channel

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class MaskedReLU(nn.ReLU):
    """``a · 1[a > 0]``: what nn.ReLU computes, with the mask a constant to autograd.

    Its second derivative, 0 almost everywhere, is then left out where nn.ReLU's is passed on as
    zeros through the whole network: a gradient penalty costs a third less (slide 39).
    """

    def forward(self, a: Tensor) -> Tensor:
        return a * (a > 0)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "masked relu": MaskedReLU,
    "celu": nn.CELU,
}


def predict(logits: Tensor) -> Tensor:
    """The predicted classes [n]: of the largest logit; of a single logit, 1 if it is positive.

    logits: [n, classes], or [n, 1] for the two classes 0 and 1.
    """
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


class Normalize(nn.Module):
    """``(a − mean) / std`` in each channel: [n, *shape] -> [n, *shape].

    mean and std are buffers: they move and are saved with the model, and are not trained.
    Raises ValueError for a std that is not positive, for a count of values that is neither 1
    nor the number of channels, and for a batch of another number of channels.
    """

    def __init__(self, shape: Sequence[int], mean: Channels, std: Channels) -> None:
        super().__init__()
        self.channels = shape[0]
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
            if len(value) not in (1, self.channels):
                raise ValueError(
                    f"{name} must be a number or hold one for each of {self.channels} channels, "
                    f"got {len(value)}"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value.tolist()}")
            self.register_buffer(name, value.reshape(-1, *[1] * (len(shape) - 1)))
        if not (self.std > 0).all():
            raise ValueError(f"std must be > 0, got {self.std.flatten().tolist()}")

    def forward(self, a: Tensor) -> Tensor:
        if a.dim() != self.mean.dim() + 1 or a.shape[1] != self.channels:
            raise ValueError(
                f"the model expects a batch [n, {self.channels}, ...] of {self.mean.dim() + 1} "
                f"dimensions, got {list(a.shape)}"
            )
        return (a - self.mean) / self.std


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
    """
    shape, hidden = _sizes("shape", shape), _sizes("hidden", hidden)
    (classes,) = _sizes("classes", [classes])
    act = _choice("activation", activation, ACTIVATIONS)
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
    """
    shape = _sizes("shape", shape)
    (classes,) = _sizes("classes", [classes])
    act = _choice("activation", activation, ACTIVATIONS)
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
    (classes,) = _sizes("classes", [classes])
    act = _choice("activation", activation, ACTIVATIONS)
    normalization = _choice("norm", norm, NORMS)
    width = stages[0][0]
    with weights_from(seed):
        layers = [Normalize((3, 32, 32), mean, std), *_convolution(3, width, 3, 1, normalization)]
        layers.append(act())
        for channels, stride in stages:
            layers.append(_Block(width, channels, stride, normalization, act))
            width = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(*layers)


class _Block(nn.Module):
    """``act(F(a) + shortcut(a))``, F two 3x3 convolutions, each normalized."""

    def __init__(self, width: int, channels: int, stride: int, normalization, act) -> None:
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


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(32, channels), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group_norm}


def _convolution(width: int, channels: int, kernel: int, stride: int, normalization) -> list:
    """A convolution without bias (the normalization has one) and its normalization."""
    layer = nn.Conv2d(width, channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [layer, normalization(channels)]


@contextmanager
def weights_from(seed: int) -> Iterator[None]:
    """Draw what torch draws from its global CPU generator from ``seed``; then restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sizes)
    if not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"{name} must hold whole numbers >= 1, got {sizes}")
    if name == "shape" and not sizes:
        raise ValueError("shape must hold at least one number, got ()")
    return sizes


def _choice(name: str, value: str, known: dict[str, Callable]) -> Callable:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return known[value]
