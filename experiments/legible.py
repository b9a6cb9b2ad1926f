"""Digits that can be read: a generator for them, a measure of it, and pictures.

generator(noise, channels)     with batch normalization, for 28 × 28 pixels
Averaged(network, decay)       shows what the mean of its last weights generates
legibility(logits, sure)       the share of images that a classifier is sure of, and of which digits
mosaic(images, columns)        one picture of many
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.models import weights_from


def generator(noise: int, channels: int, *, seed: int) -> nn.Sequential:
    """lib.gan's image_generator with batch normalization (Radford et al., 2016).

    Noise [n, noise] -> images [n, 1, 28, 28] in (0, 1).
    """
    wide = 2 * channels
    with weights_from(seed):
        return nn.Sequential(
            nn.Linear(noise, wide * 49, bias=False),
            nn.Unflatten(1, (wide, 7, 7)),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )


class Averaged(nn.Module):
    """A network that is trained as it is, and shows what the mean of its weights makes.

    The mean is used in evaluation mode without gradients.
    mean ← decay · mean + (1 − decay) · weights, before each step that trains it: at each pass in
    training mode with gradients. Statistics of batch normalization are averaged too. The means are
    buffers, so that a checkpoint has them and no optimizer does.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"average must be in [0, 1), got {decay}")
        self.network, self.decay = network, decay
        for name, value in network.state_dict().items():
            self.register_buffer(_buffer(name), value.clone())

    def forward(self, noise: Tensor) -> Tensor:
        if not self.training and not torch.is_grad_enabled():
            means = {name: getattr(self, _buffer(name)) for name in self.network.state_dict()}
            return functional_call(self.network, means, (noise,))
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                for name, value in self.network.state_dict().items():
                    mean = getattr(self, _buffer(name))
                    if mean.is_floating_point():
                        mean.lerp_(value, 1 - self.decay)
                    else:  # a count
                        mean.copy_(value)
        return self.network(noise)


def _buffer(name: str) -> str:
    return "mean_" + name.replace(".", "_")


def legibility(logits: Tensor, sure: float) -> dict[str, float | list[float]]:
    """Of images, by a classifier's logits [n, classes] on them.

    sure: the share to one class of which the classifier gives at least this probability.
    digits: for each class the share of all images that are surely of it; least_digit: the least.
    """
    most, which = logits.softmax(1).max(1)
    counts = which[most >= sure].bincount(minlength=logits.shape[1])
    shares = (counts.double() / len(logits)).tolist()
    return {"sure": sum(shares), "least_digit": min(shares), "digits": shares}


def mosaic(images: Tensor, columns: int) -> Tensor:
    """[n, 1, h, w] in [0, 1], row by row in one picture of bytes; n is a multiple of columns."""
    n, _, h, w = images.shape
    rows = images.reshape(n // columns, columns, h, w).transpose(1, 2)
    return (rows.reshape(n // columns * h, columns * w) * 255).round().to(torch.uint8)
