"""What every classifier is made of: normalization, activations, a seed; and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib.checks import check_counts, check_tensor

Channels = float | Sequence[float]  # one number for all channels, or one a channel

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class MaskedReLU(nn.ReLU):
    """``a · 1[a > 0]``: what nn.ReLU computes, with the mask a constant to autograd.

    Its second derivative, 0 almost everywhere, is then left out where nn.ReLU's is passed on as
    zeros through the whole network: a gradient penalty costs a third less (slide 39).

    >>> import torch
    >>> from lib.models import MaskedReLU
    >>> MaskedReLU()(torch.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
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

    logits: [n, classes], or [n, 1] for the two classes 0 and 1. A sample with a NaN among its
    logits has no prediction: its class is −1, which no label is.
    Raises ValueError for other shapes.

    >>> import torch
    >>> from lib.models import predict
    >>> predict(torch.tensor([[1.0, 2.0], [3.0, float("nan")]])).tolist()
    [1, -1]
    """
    check_tensor("logits", logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [n, classes], got {list(logits.shape)}")
    classes = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    return classes.masked_fill(logits.isnan().any(1), -1)


class Normalize(nn.Module):
    """``(a − mean) / std`` in each channel: [n, *shape] -> [n, *shape].

    mean and std are buffers: they move and are saved with the model, and are not trained.
    Raises ValueError for a std that is not positive, for a count of values that is neither 1
    nor the number of channels, for a batch of another number of channels, and for one of integers.

    >>> import torch
    >>> from lib.models import Normalize
    >>> Normalize((1, 2, 2), mean=0.5, std=0.25)(torch.ones(1, 1, 2, 2)).unique().item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Sequence[int], mean: Channels, std: Channels) -> None:
        super().__init__()
        self.channels = shape[0]
        for name, value in (("mean", mean), ("std", std)):
            try:
                numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
            except (TypeError, ValueError, RuntimeError):
                raise ValueError(
                    f"{name} must be a number or one a channel, got {value!r}"
                ) from None
            if len(numbers) not in (1, self.channels):
                raise ValueError(
                    f"{name} must be a number or hold one for each of {self.channels} channels, "
                    f"got {len(numbers)}"
                )
            if not torch.isfinite(numbers).all():
                raise ValueError(f"{name} must be finite, got {numbers.tolist()}")
            self.register_buffer(name, numbers.reshape(-1, *[1] * (len(shape) - 1)))
        if not (self.std > 0).all():
            raise ValueError(f"std must be > 0, got {self.std.flatten().tolist()}")

    def forward(self, a: Tensor) -> Tensor:
        check_tensor("a", a)
        if not a.is_floating_point():
            raise ValueError(f"a must hold floats, got {a.dtype}: pass pixels in [0, 1]")
        if a.dim() != self.mean.dim() + 1 or a.shape[1] != self.channels:
            raise ValueError(
                f"the model expects a batch [n, {self.channels}, ...] of "
                f"{self.mean.dim() + 1} dimensions, got {list(a.shape)}"
            )
        return (a - self.mean) / self.std


@contextmanager
def weights_from(seed: int) -> Iterator[None]:
    """Draw what torch draws from its global CPU generator from ``seed``; then restore it.

    >>> import torch
    >>> from lib.models import weights_from
    >>> with weights_from(3):
    ...     first = torch.rand(2)
    >>> with weights_from(3):
    ...     torch.equal(torch.rand(2), first)
    True
    """
    check_counts(-(2**63), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def sizes_of(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes, if all are whole and positive; else ValueError."""
    given = sizes
    sizes = tuple(sizes) if isinstance(sizes, Iterable) else ()
    if not isinstance(given, Iterable) or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(f"{name} must hold whole numbers >= 1, got {sizes or given}")
    if name == "shape" and not sizes:
        raise ValueError("shape must hold at least one number, got ()")
    return sizes


def choice_of(name: str, value: str, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """What is known under this name; ValueError for an unknown one."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return known[value]
