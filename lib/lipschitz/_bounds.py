"""How fast a network can change: Lipschitz constants, bounded, found and imposed (slides 36, 39).

==========================  =========================================================  ========
``spectral_norm``           the largest singular value of a layer's linear map         slide 39
``lipschitz_bound``         the product over the layers, an upper bound                slide 36
``lipschitz_lower_bound``   the largest ``‖∇h‖`` that a search finds                   slide 36
``gradient_penalty``        what a critic pays for gradients whose norm is not 1       slide 39
``clip_weights_``           every weight into [−c, c]                                  slide 39
``normalize_spectrally_``   layers whose map has norm 1, convolutions included         slide 39
==========================  =========================================================  ========

All constants are for the ℓ2 norm on both sides unless said otherwise. A convolution is the linear
map on images of a given size that it is, and not its kernel reshaped to a matrix, whose norm is
less (prop-convolution-norm). The exact constant of a small ReLU network is in ``_exact``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lib.balls import L2, Ball
from lib.lipschitz._exact import layers_of
from lib.lipschitz._operator_norm import spectral_norm
from lib.models import MaskedReLU, Normalize
from lib.runs import processes

__all__ = [
    "clip_weights_",
    "gradient_penalty",
    "lipschitz_bound",
    "lipschitz_lower_bound",
    "normalize_spectrally_",
    "spectral_norm",
]

Critic = Callable[[Tensor], Tensor]

# The greatest slope of each activation that the bound knows.
SLOPES: dict[type[nn.Module], Callable[[nn.Module], float]] = {
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
    layers, ``lib.models``' Normalize, and the activations in ``SLOPES``.
    input_shape: of one input, [c, h, w]; needed if there are convolutions.
    Raises ValueError, naming the layer, for one that it does not know.
    """
    bound = 1.0
    for layer, shape in _layers_with_shapes(model, input_shape):
        if isinstance(layer, nn.Linear):
            bound *= spectral_norm(layer.weight)
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.dilation) == {1}:
            if shape is None or len(shape) != 3:
                raise ValueError("a convolution's norm depends on the image: give input_shape")
            padding = layer.padding
            if isinstance(padding, str) or layer.padding_mode != "zeros":
                raise ValueError(f"only zero padding by numbers is known, got {layer}")
            bound *= spectral_norm(
                layer.weight, tuple(shape[1:]), stride=layer.stride, padding=padding
            )
        elif type(layer) in SLOPES:
            bound *= SLOPES[type(layer)](layer)
        else:
            raise ValueError(f"no bound is known for {layer}: use the layers that SLOPES names")
    return bound


def lipschitz_lower_bound(
    model: Critic, start: Tensor, *, steps: int = 50, step_size: float = 0.1
) -> float:
    """``max ‖∇h(a)‖₂`` over points found by ascent on it: a lower bound (slide 36).

    model: differentiable, [n, ...] -> [n] or [n, 1]; start: [n, ...], where the n searches begin.
    Each moves by step_size along the unit gradient of ``‖∇h‖``, ``steps`` times; of all points
    met the largest norm counts. A ReLU network is linear around almost every point, so that its
    search does not move: there, many starts are what helps. Start where the model is
    differentiable: at a ReLU's kink, such as 0, autograd can give the slope of no piece.
    Raises ValueError for a model that returns more than one number a sample.
    """
    best, a = 0.0, start.detach().clone()
    for step in range(steps + 1):
        a.requires_grad_()
        norm = L2(1.0).norm(_gradient(model, a))
        best = max(best, float(norm.detach().max()))
        if step == steps or not norm.requires_grad:
            break
        [up] = torch.autograd.grad(norm.sum(), a, materialize_grads=True)
        a = (a + L2(step_size).lmo(up)).detach()
    return best


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    *,
    one_sided: bool = False,
    ball: type[Ball] = L2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``weight · mean (‖∇d(z)‖_* − 1)²``, z uniform on the segments from fake to real (slide 39).

    def-gradient-penalty (Gulrajani et al., 2017). The critic maximizes, so subtract it: the slide
    adds it, which rewards steep critics. one_sided: ``max(‖∇d‖_* − 1, 0)²``, which leaves critics
    alone that are flatter than 1.
    critic: [n, ...] -> [n] or [n, 1], each sample for itself; real, fake: [n, ...].
    ball: the unit ball of the ground metric, whose dual norm is taken. generator: draws one
    point of each segment; None: torch's own. Differentiable in the critic's parameters.
    Raises ValueError for two shapes and for a weight that is not >= 0.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {list(real.shape)} and fake {list(fake.shape)} must agree")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be finite and >= 0, got {weight}")
    where = generator.device if generator else real.device
    rand = partial(torch.rand, device=where)
    t = processes.draw_local_rows(rand, (len(real),), generator).to(real)
    t = t.reshape(-1, *[1] * (real.dim() - 1))
    z = torch.lerp(fake.detach(), real.detach(), t).requires_grad_()
    excess = ball(1.0).dual_norm(_gradient(critic, z)) - 1
    return weight * (excess.clamp(min=0) if one_sided else excess).square().mean()


@torch.no_grad()
def clip_weights_(critic: nn.Module, c: float) -> None:
    """Every parameter to the nearest in [−c, c], in place: a projection in ℓ∞ (slide 39).

    It bounds each weight and so the constant, but by a number other than 1 that depends on the
    widths: an [m, n] layer's norm is at most ``c √(m n)``. Raises ValueError unless c > 0.
    """
    if not 0 < c < math.inf:
        raise ValueError(f"c must be finite and > 0, got {c}")
    for p in critic.parameters():
        p.clamp_(-c, c)


def normalize_spectrally_(model: nn.Module, input_shape: Sequence[int] | None = None) -> nn.Module:
    """Divide each layer's weight by its spectral norm, in place, from now on (slide 39).

    A layer of which this was asked before stays as it is.

    With 1-Lipschitz activations the model is then 1-Lipschitz. Miyato et al. (2018) divide a
    convolution by the norm of its reshaped kernel, which leaves a norm of up to the root of the
    kernel's area (prop-convolution-norm); here it is that of the map on its images. In training
    mode each forward pass does one step of power iteration, whose estimate lags behind a moving
    weight; in evaluation mode it is as it was. ``lipschitz_bound(model)`` says what holds.
    input_shape: [c, h, w], if there are convolutions.
    Returns the model. Raises ValueError as lipschitz_bound does.
    """
    lipschitz_bound(model, input_shape)  # refuses what it does not know
    for layer, shape in list(_layers_with_shapes(model, input_shape)):
        done = any(isinstance(module, _Normalized) for module in layer.modules())
        if isinstance(layer, nn.Linear | nn.Conv2d) and not done:
            parametrize.register_parametrization(layer, "weight", _Normalized(layer, shape))
    return model


def _layers_with_shapes(
    model: nn.Module, shape: Sequence[int] | None
) -> Iterator[tuple[nn.Module, Sequence[int] | None]]:
    """The layers in order, and the shape of one input of each, None if the model's is not given."""
    like = next(model.parameters(), torch.zeros(()))
    for layer in layers_of(model):
        yield layer, shape
        if shape is not None:
            with torch.no_grad():
                shape = tuple(layer(torch.zeros(1, *shape).to(like)).shape[1:])


class _Normalized(nn.Module):
    """``W / σ``, σ = ⟨u, W v⟩ by power iteration on ``v -> W v`` and its adjoint."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, shape: Sequence[int] | None) -> None:
        super().__init__()
        self.convolution = isinstance(layer, nn.Conv2d)
        if self.convolution:
            self.shape = (1, *shape)
            self.settings = layer.stride, layer.padding
        else:
            self.shape = (1, layer.in_features)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.shape, generator=generator).to(layer.weight)
        self.register_buffer("v", v / v.norm())
        for _ in range(50):
            self._iterate(layer.weight)

    def _map(self, weight: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(v, weight, None, *self.settings) if self.convolution else v @ weight.T

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        u = self._map(weight, self.v)
        if self.convolution:
            v = torch.nn.grad.conv2d_input(self.shape, weight, u, *self.settings)
        else:
            v = u @ weight
        self.v = torch.where(v.norm() > 0, v / v.norm(), self.v)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._iterate(weight)
        sigma = self._map(weight, self.v.clone()).norm()
        return weight / torch.where(sigma > 0, sigma, 1.0)  # a zero map is 1-Lipschitz as it is


def _gradient(critic: Critic, a: Tensor) -> Tensor:
    """∇d(a) of each sample, differentiable."""
    with torch.enable_grad():
        value = critic(a)
        if value.numel() != len(a):
            raise ValueError(f"needs one value a sample, got {list(value.shape)} for {len(a)}")
        [g] = torch.autograd.grad(value.sum(), a, create_graph=True, materialize_grads=True)
    return g
