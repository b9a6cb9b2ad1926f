"""How fast a network can change: an upper and a lower bound of its Lipschitz constant (slide 36).

All constants are for the ℓ2 norm on both sides. A convolution is the linear map on images of a
given size that it is, and not its kernel reshaped to a matrix, whose norm is less
(prop-convolution-norm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib.balls import L2
from lib.checks import check_counts, check_floats, check_number, in_place_refused
from lib.lipschitz._exact import layers_of
from lib.lipschitz._operator_norm import spectral_norm
from lib.models import MaskedReLU, Normalize

Critic = Callable[[Tensor], Tensor]
Pair = tuple[int, int]

# The greatest slope of each activation that the bound knows.
SLOPES: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.ReLU: lambda layer: 1.0,
    MaskedReLU: lambda layer: 1.0,
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    nn.CELU: lambda layer: 1.0,
    nn.Tanh: lambda layer: 1.0,
    nn.Sigmoid: lambda layer: 0.25,
    nn.Softplus: lambda layer: 1.0,
    nn.Flatten: lambda layer: 1.0,
    nn.Unflatten: lambda layer: 1.0,
    nn.Identity: lambda layer: 1.0,
    Normalize: lambda layer: float(1 / layer.std.min()),
}


def lipschitz_bound(model: nn.Module, input_shape: Sequence[int] | None = None) -> float:
    """``Π ‖W_l‖₂ · (greatest slope of its activation)``: slide 36's lemma (lem-lipschitz).

    An upper bound of the constant of a feed-forward model, exact for one layer and often far
    above it for more. model: an ``nn.Sequential``, nested ones too, of linear and convolution
    layers, ``lib.models``' Normalize, and the activations in ``SLOPES``; it is looked at in
    evaluation mode and left as it was.
    input_shape: of one input, [c, h, w]; needed if there are convolutions.
    Raises ValueError, naming the layer, for one that it does not know.

    >>> import torch
    >>> from lib.lipschitz import lipschitz_bound
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
    >>> round(lipschitz_bound(torch.nn.Sequential(layer, torch.nn.Sigmoid())), 4)  # 3 √2 / 4
    1.0607
    """
    with evaluated(model):
        return math.prod(
            _layer_bound(layer, shape) for layer, shape in layers_with_shapes(model, input_shape)
        )


def _layer_bound(layer: nn.Module, shape: Sequence[int] | None) -> float:
    """The norm of a layer's linear map, or an activation's greatest slope."""
    if isinstance(layer, nn.Linear):
        return spectral_norm(layer.weight)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.dilation) == {1}:
        if shape is None or len(shape) != 3:
            raise ValueError(
                "a convolution's norm depends on the image: give input_shape=(c, h, w), "
                f"got {shape}"
            )
        padding = layer.padding
        if isinstance(padding, str) or layer.padding_mode != "zeros":
            raise ValueError(f"only zero padding by numbers is known, got {layer}")
        _, height, width = shape
        stride, padding = cast(Pair, layer.stride), cast(Pair, padding)
        return spectral_norm(layer.weight, (height, width), stride=stride, padding=padding)
    if type(layer) in SLOPES:
        return SLOPES[type(layer)](layer)
    raise ValueError(f"no bound is known for {layer}: use the layers that SLOPES names")


def lipschitz_lower_bound(
    model: Critic, start: Tensor, *, steps: int = 50, step_size: float = 0.1
) -> float:
    """``max ‖∇h(a)‖₂`` over points found by ascent on it: a lower bound (slide 36).

    model: differentiable, [n, ...] -> [n] or [n, 1], looked at in evaluation mode if it is a
    module; start: floats [n, ...], where the n searches begin. Each moves by step_size along the
    unit gradient of ``‖∇h‖``, ``steps`` times; of all points met the largest norm counts. A ReLU
    network is linear around almost every point, so that its search does not move: there, many
    starts are what helps. Start where the model is differentiable: at a ReLU's kink, such as 0,
    autograd can give the slope of no piece.
    Raises ValueError for settings out of range, for a model that returns more than one number a
    sample or a value without a gradient, and FloatingPointError for a gradient with NaN.

    >>> import torch
    >>> from lib.lipschitz import lipschitz_lower_bound
    >>> round(lipschitz_lower_bound(lambda a: a.tanh().sum(1), torch.tensor([[1.0]])), 2)
    1.0
    """
    check_floats("start", start)
    if start.dim() == 0 or start.numel() == 0:
        raise ValueError(
            "start must hold floats [n, ...], one point or more, got "
            f"{start.dtype} {list(start.shape)}"
        )
    check_counts(0, steps=steps)
    check_number("step_size", step_size, positive=True)
    best = 0.0
    with evaluated(model), torch.inference_mode(False):
        a = start.detach().clone()
        for step in range(steps + 1):
            a.requires_grad_()
            norm = L2(1.0).norm(input_gradient(model, a))
            if not torch.isfinite(norm).all():
                raise FloatingPointError("the model's gradient is not finite: has it diverged?")
            best = max(best, float(norm.detach().max()))
            if step == steps or not norm.requires_grad:
                break
            [up] = torch.autograd.grad(norm.sum(), a, materialize_grads=True)
            a = (a + L2(step_size).lmo(up)).detach()
    return best


def input_gradient(critic: Critic, a: Tensor) -> Tensor:
    """∇d(a) of each sample [n, ...], differentiable; a must require a gradient."""
    with torch.enable_grad():
        with in_place_refused("the critic", a):
            value = critic(a)
        if not isinstance(value, Tensor) or value.numel() != len(a):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the critic must return one value a sample, got {got} for {len(a)}")
        if not value.requires_grad:
            raise ValueError("the critic's value has no gradient: is it detached, or constant?")
        [g] = torch.autograd.grad(value.sum(), a, create_graph=True, materialize_grads=True)
    return g


def layers_with_shapes(
    model: nn.Module, shape: Sequence[int] | None
) -> Iterator[tuple[nn.Module, Sequence[int] | None]]:
    """The layers in order, and the shape of one input of each, None if the model's is not given."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Sequential, got {model!r}")
    like = next(model.parameters(), torch.zeros(()))
    for layer in layers_of(model):
        yield layer, shape
        if shape is not None:
            try:
                with torch.no_grad():
                    following = tuple(layer(torch.zeros(1, *shape).to(like)).shape[1:])
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"input_shape must be that of one input, {tuple(shape)} does not fit {layer}: "
                    f"{error}"
                ) from error
            shape = following


@contextmanager
def evaluated(model: object) -> Iterator[None]:
    """A module in evaluation mode, layer by layer as it was afterwards; anything else as it is."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for layer in modes:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
