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

from lib.models._layers import (
    ACTIVATIONS,
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
    MaskedReLU,
    Normalize,
    predict,
    weights_from,
)
from lib.models._resnets import NORMS, resnet8, resnet18
from lib.models._small import cnn, linear, mlp

__all__ = [
    "ACTIVATIONS",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "MNIST_MEAN",
    "MNIST_STD",
    "NORMS",
    "MaskedReLU",
    "Normalize",
    "cnn",
    "linear",
    "mlp",
    "predict",
    "resnet8",
    "resnet18",
    "weights_from",
]
