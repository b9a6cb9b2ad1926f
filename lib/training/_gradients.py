"""The slides' steps: the gradient of one minibatch, and what it is a gradient of.

    risk_gradient              ``(1/m) Σ L(h_x(a_i), b_i)``                              slide 5
    adversarial_gradient       attack, then the gradient at the attack               slides 18, 23
    danskin_gradient           the shortest vector in the hull of k such gradients       slide 22
    sharpness_aware_gradient   climb, take the gradient there, come back                 slide 44

Each sets every trained parameter's ``.grad`` and returns the mean loss, detached; an optimizer's
step descends. On several processes (lib.runs.processes) a and b are this one's rows of the
minibatch, and gradients and loss are those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lib.attacks import Loss, cross_entropy
from lib.balls import L2
from lib.checks import check_losses, check_tensor
from lib.danskin import gradients, min_norm_point
from lib.runs import processes

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, a, b) -> a + η


def risk_gradient(model: nn.Module, a: Tensor, b: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """The gradient of the mean loss ``(1/m) Σ L(h_x(a_i), b_i)`` (slide 5).

    loss: (logits [m, classes], labels [m]) -> [m]. Raises ValueError for a loss of another shape,
    and for one that does not depend on the parameters.

    >>> model = nn.Linear(2, 3)
    >>> risk_gradient(model, torch.zeros(4, 2), torch.arange(4) % 3).shape, model.weight.grad.shape
    (torch.Size([]), torch.Size([3, 2]))
    """
    model.zero_grad(set_to_none=True)
    risk = mean_loss(model, a, b, loss)
    check_differentiable(risk)
    risk.backward()
    return averaged(model, risk.detach())


def adversarial_gradient(
    model: nn.Module, a: Tensor, b: Tensor, attack: Attack, loss: Loss = cross_entropy
) -> Tensor:
    """The mean gradient at each sample's worst input (slide 23, lines iii.a and iii.b).

    attack: (model, a, b) -> a + η; else ValueError. It sees the model in evaluation mode.

    >>> from lib.attacks import attack
    >>> from lib.balls import LInf
    >>> model, a, b = nn.Linear(2, 3), torch.rand(4, 2), torch.arange(4) % 3
    >>> worst = adversarial_gradient(model, a, b, lambda *batch: attack(*batch, LInf(0.1)))
    >>> bool(worst > risk_gradient(model, a, b))
    True
    """
    with searched(model):
        worst = attack(model, a, b)  # a. an attack a_i + η_i on each sample
    check_attacked(worst, a)
    return risk_gradient(model, worst.detach(), b, loss)  # b. ∇ₓ L there, η_i fixed


def danskin_gradient(
    model: nn.Module,
    a: Tensor,
    b: Tensor,
    attack: Attack,
    k: int,
    loss: Loss = cross_entropy,
    weight_decay: float = 0.0,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The shortest vector in the hull of the gradients at k attacks (slide 22, prop-ddi).

    attack: as in adversarial_gradient, from another start each time. weight_decay: c adds c·x to
    each gradient. watch: is shown the gradients [k, p]. Returns the greatest of the k mean losses.

    >>> model, a, b = nn.Linear(2, 3), torch.rand(4, 2), torch.arange(4) % 3
    >>> loss = danskin_gradient(model, a, b, lambda model, a, b: a + torch.rand(4, 2) / 9, k=2)
    """
    with searched(model):
        attacked = [attack(model, a, b) for _ in range(k)]  # approximate maximizers
    g, losses = mean_gradients(model, attacked, b, loss, weight_decay)  # g_i = ∇ₓ Φ(x, η_i): [k, p]
    if watch is not None:
        watch(g)
    set_gradient(model, shortest(g))  # min ‖Σ w_i g_i‖, w on the simplex
    return losses.max()


def sharpness_aware_gradient(
    model: nn.Module, a: Tensor, b: Tensor, rho: float, loss: Loss = cross_entropy
) -> Tensor:
    """The gradient at ``x + η, η = rho g / ‖g‖₂, g = ∇R(x)``, R the mean loss (slide 44).

    Where g = 0, η = 0. Parameters and buffers are put back, bit for bit.

    >>> model, a, b = nn.Linear(2, 3), torch.rand(4, 2), torch.arange(4) % 3
    >>> up = sharpness_aware_gradient(model, a, b, 0.05)
    >>> bool(up > risk_gradient(model, a, b))
    True
    """
    risk_gradient(model, a, b, loss)
    eta = L2(rho).lmo(gradient_row(model))  # climb: argmax ⟨g, η⟩ over ‖η‖₂ <= rho
    with moved(model, eta):  # at x + η, and back
        return risk_gradient(model, a, b, loss)


def mean_loss(
    model: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """``(1/m) Σ L(h_x(a_i), b_i)`` with its graph; ValueError unless loss gives one value each.

    The model gets a copy of a, which it may change.

    >>> round(mean_loss(nn.Flatten(), torch.zeros(4, 10), torch.arange(4)).item(), 4)  # log 10
    2.3026
    """
    check_tensor("a", a)
    if len(a) == 0:
        raise ValueError("a minibatch must hold one sample or more, got 0")
    losses = loss(model(a.detach().clone()), b)
    check_losses(losses, b)
    return losses.mean()


def averaged(model: nn.Module, risk: Tensor) -> Tensor:
    """Every ``.grad``, and the loss, as the mean over the processes' rows of the minibatch."""
    if processes.world_size() > 1:
        trained = trained_parameters(model)
        processes.mean_([p.grad for p in trained if p.grad is not None] + [risk])
    return risk


def mean_gradients(
    model: nn.Module, attacked: list[Tensor], b: Tensor, loss: Loss, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """The k gradients [k, p] and mean losses [k], those of the minibatch on all processes."""
    g, losses = gradients(model, attacked, b, loss, return_losses=True)
    processes.mean_([g, losses])
    if weight_decay:
        g += weight_decay * torch.cat([p.detach().flatten() for p in trained_parameters(model)])
    return g, losses


def shortest(g: Tensor) -> Tensor:
    """The min-norm point [p] of the rows' hull; NaN if one is not finite, so that fit stops."""
    finite = torch.isfinite(g.sum())
    weights = min_norm_point(g) if finite else torch.full_like(g[:, 0], 1 / len(g))
    with torch.autocast(g.device.type, enabled=False):
        return cast(Tensor, weights) @ g


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that ask for a gradient, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def gradient_row(model: nn.Module) -> Tensor:
    """Every ``.grad`` as one row [1, p], the gradient of a function of p parameters."""
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained_parameters(model)]
    return torch.cat([row.flatten() for row in rows])[None]


def set_gradient(model: nn.Module, row: Tensor) -> None:
    """The row [p] as every parameter's ``.grad``."""
    trained = trained_parameters(model)
    model.zero_grad(set_to_none=True)
    for p, part in zip(trained, row.split([p.numel() for p in trained]), strict=True):
        p.grad = part.view_as(p)


def split_rows(rows: Tensor, x: Iterable[Tensor]) -> list[Tensor]:
    """Rows [m, p] as one tensor [m, *shape] for each parameter of x."""
    shapes = [p.shape for p in x]
    parts = rows.split([shape.numel() for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def check_generator(generator: torch.Generator | None) -> None:
    """ValueError for a generator of another device than the CPU, where balls draw their points."""
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, got one on {generator.device}: its points are drawn "
            "there and moved, so that they are the same on every device"
        )


def check_differentiable(risk: Tensor) -> None:
    """ValueError for a loss that does not depend on the parameters."""
    if not risk.requires_grad:
        raise ValueError(
            "the loss has no gradient in the model's parameters: look for a model or loss that "
            "detaches it, for frozen parameters, and for gradients that are switched off"
        )


def check_attacked(worst: Tensor, a: Tensor) -> None:
    """ValueError unless an attack returned finite inputs like a."""
    if not isinstance(worst, Tensor) or worst.shape != a.shape:
        got = list(worst.shape) if isinstance(worst, Tensor) else type(worst).__name__
        raise ValueError(f"attack must return inputs a + η {list(a.shape)}, got {got}")
    if not torch.isfinite(worst.sum()) and not torch.isfinite(worst).all():
        raise ValueError("attack must return finite inputs, got NaN or infinity")


@contextmanager
def searched(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and the parameters ask for no gradient: then as it was again.

    A compiled model's backward pass makes the gradients of all that asks for one.
    """
    trained = trained_parameters(model)
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def moved(model: nn.Module, eta: Tensor) -> Iterator[None]:
    """The model at x + η, η [1, p]; then its parameters and buffers are put back, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            x = trained_parameters(model)
            for p, [e] in zip(x, split_rows(eta, x), strict=True):
                p.add_(e)
        torch.clear_autocast_cache()  # autocast's copies of the weights are of those before
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
        torch.clear_autocast_cache()
