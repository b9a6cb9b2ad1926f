"""Updates: what ``training.fit`` minimizes, each as the gradient that one minibatch gives.

===================  ==========================================================  ==============
``erm``              ``(1/n) Σ L(h_x(a_i), b_i)``                                slide 5
``adversarial``      ``(1/n) Σ max L(h_x(a_i + η), b_i)`` over ``‖η‖ <= eps``    slides 16, 23
``danskin``          the same, along the steepest of k maximizers' directions    slide 22
``sharpness_aware``  ``max (1/n) Σ L(h_{x+η}(a_i), b_i)`` over ``‖η‖₂ <= rho``   slides 43-44
``ball_stability``   the same, with several steps for η                          slides 6, 43
===================  ==========================================================  ==============

``update(model, a, b)`` sets every parameter's ``.grad`` for the minibatch a [m, ...], b [m] and
returns the mean loss, detached. It finds the model in training mode and leaves it so. One that
draws random numbers shows its generators as ``update.generators``, so that a checkpoint holds
them. On several processes (lib.processes) a and b are this one's share of the minibatch, and
gradients and loss are averaged. Losses map (logits [m, classes], labels [m]) to [m], one value a
sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib import processes
from lib.ascent import StepSize, loss_of, pga, step_sizes
from lib.attacks import Loss, cross_entropy
from lib.balls import L2, Ball
from lib.danskin import gradients, min_norm_point

Update = Callable[[nn.Module, Tensor, Tensor], Tensor]  # sets .grad, returns the mean loss
COPIES = 2**25  # numbers that the copies of the parameters may hold at a time, one copy a sample


def erm(loss: Loss = cross_entropy) -> Update:
    """Empirical risk minimization: the gradient of ``(1/m) Σ L(h_x(a_i), b_i)`` (slide 5, def-erm).

    The sum is over the minibatch, so that in expectation it is the gradient of the risk R_n.
    loss: (logits [m, classes], labels [m]) -> [m]; one that returns another shape, such as the
    batch's mean, is refused with a ValueError.
    """

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        risk = mean_loss(model, a, b, loss)
        risk.backward()
        return _averaged(model, risk.detach())  # over the processes, if there are several

    return update


def adversarial(
    attack: Callable[..., Tensor],
    *,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Update:
    """Adversarial training: the mean gradient at each sample's worst input (slide 23, Madry 2018).

    Steps iii.a and iii.b of the slide: ``η_i`` by the attack, then the gradient in x of
    ``(1/m) Σ L(h_x(a_i + η_i), b_i)`` with the η_i held fixed. At an exact maximizer it is a
    subgradient of the robust loss (slide 19); at another point it is a gradient of a lower bound.

    attack: (model, a, b) -> inputs like a, for instance
    ``functools.partial(attacks.attack, ball=LInf(0.1), steps=7)``. It sees the model in
    evaluation mode, so that batch norm's statistics and dropout take no part in the search; the
    gradient is then taken in training mode.
    generator: passed to the attack, as ``generator=``, if given; an attack without random
    numbers needs none.
    Raises ValueError if the attack returns another shape than a's, or the loss another than [m].
    """
    descend = erm(loss)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        model.eval()
        try:
            own = {} if generator is None else {"generator": processes.child(generator)}
            worst = attack(model, a, b, **own)
        finally:
            model.train()
        if worst.shape != a.shape:
            raise ValueError(
                f"attack must return inputs a + η {list(a.shape)}, got {list(worst.shape)}"
            )
        return descend(model, worst.detach(), b)

    update.generators = () if generator is None else (generator,)
    return update


def danskin(
    ball: Ball,
    *,
    k: int = 10,
    steps: int = 7,
    step_size: StepSize | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    weight_decay: float = 0.0,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Update:
    """DDi: the shortest vector in the hull of the gradients at k attacks (slide 22).

    The attacks are k runs of steepest PGA (slide 14) on the whole minibatch, from random points
    of the ball and the box; their gradients g_i are those of the minibatch's mean loss at the k
    attacked minibatches. ``.grad`` is the min-norm point g of their hull, at its own length, so
    that SGD with momentum acts on it as on a gradient. -g lowers each of the k losses, at the rate
    ‖g‖² or more, and is the steepest direction of the robust loss if the k attacks are all its
    maximizers (prop-ddi; Latorre et al., ICLR 2023). With k = 1 it is ``adversarial`` with a
    random start.

    step_size: a number, one a step, or None for ``2.5 eps / steps`` (Madry et al., 2018).
    weight_decay: c adds ``c/2 ‖x‖²`` to the loss, that is c·x to each g_i before the hull is
    formed, which an optimizer's own weight decay would do afterwards.
    generator: draws the k starts; None makes one with seed 0. Returns the greatest of the k mean
    losses, without the weight decay.

    The attacks see the model in evaluation mode. The gradients are taken in training mode: batch
    norm uses the statistics of each attacked minibatch for its own g_i, and its running
    statistics move once a step, by the first of them. Memory: one minibatch's graph and k rows
    of p numbers. Raises ValueError for k < 1, steps < 1, a radius a sample, and bad step sizes.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if torch.is_tensor(ball.eps) and ball.eps.dim():
        raise ValueError(f"eps must be one number for all minibatches, got {list(ball.eps.shape)}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if step_size is None:
        step_size = 2.5 * float(ball.eps) / max(steps, 1)
    alphas = step_sizes(step_size, steps)
    generator = generator or torch.Generator().manual_seed(0)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        f, low, high = loss_of(model, a, b, loss=loss), bounds[0] - a, bounds[1] - a
        attacked = []
        model.eval()
        try:
            for _ in range(k):
                start = processes.drawn(ball.sample, tuple(a.shape), generator).to(a)
                start = ball.project(start, low, high)
                eta = pga(f, start, ball, alphas, steps, low, high, steepest=True)
                attacked.append((a + eta).clamp(*bounds))
        finally:
            model.train()
        g, losses = gradients(model, attacked, b, loss, return_losses=True)
        processes.mean_([g, losses])
        trained = _trained(model)
        if weight_decay:
            g += weight_decay * torch.cat([p.detach().flatten() for p in trained])
        finite = torch.isfinite(g.sum())  # else pass it on: fit stops and says what to try
        weights = min_norm_point(g) if finite else torch.full_like(losses, 1 / k)
        model.zero_grad(set_to_none=True)
        with torch.autocast(g.device.type, enabled=False):
            parts = (weights @ g).split([p.numel() for p in trained])
        for p, part in zip(trained, parts, strict=True):
            p.grad = part.view_as(p)
        return losses.max()

    update.generators = (generator,)
    return update


def sharpness_aware(rho: float, *, loss: Loss = cross_entropy, per_sample: bool = False) -> Update:
    """SAM: the gradient at ``x + η, η = rho g / ‖g‖₂, g = ∇R(x)`` (slide 44, Foret et al. 2021).

    R is the minibatch's mean loss, and η maximizes its tangent over the ℓ2 ball of radius rho in
    the space of all parameters (slide 8: a linear maximization; def-sam). η is held fixed in the
    second gradient. Where ``g = 0`` the tangent is flat and η = 0; with rho = 0 it is erm. Two
    gradients a step.

    per_sample: the slide's form, ``(1/m) Σ ∇L_i(x + η_i)`` with ``η_i = rho ∇L_i / ‖∇L_i‖₂``; it
    needs as many copies of the parameters as the minibatch has samples.
    Returns the mean loss at the perturbed parameters. Parameters and buffers are put back, bit
    for bit; running statistics of batch norm see the first pass alone, which is at x. Dropout
    draws anew in each pass.
    Raises ValueError for rho < 0, and per sample for batch norm, whose samples see each other.
    """
    ball, descend = _ball("rho", rho), erm(loss)

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        risk = descend(model, a, b)
        if rho > 0:
            with _moved(model, ball.lmo(_gradient(model))):
                risk = descend(model, a, b)
        return risk

    def update_per_sample(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
            raise ValueError(
                "per_sample=True needs samples that do not see each other, and batch norm mixes "
                'them: use per_sample=False, or another normalization (resnet18(norm="group"))'
            )
        x = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

        def one(x: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
            return mean_loss(lambda a: functional_call(model, x, (a,)), a[None], b[None], loss)

        at = torch.func.grad_and_value(one)
        risk = torch.zeros((), device=a.device)
        total = {name: torch.zeros_like(p) for name, p in x.items()}
        size = max(1, COPIES // sum(p.numel() for p in x.values()))
        for a_part, b_part in zip(a.split(size), b.split(size), strict=True):
            g, _ = vmap(at, (None, 0, 0), randomness="different")(x, a_part, b_part)
            eta = ball.lmo(torch.cat([g[name].flatten(1) for name in x], 1))  # [m, p]: a row each
            moved = dict(zip(x, map(torch.add, x.values(), _split(eta, x.values())), strict=True))
            g, losses = vmap(at, randomness="different")(moved, a_part, b_part)
            total = {name: total[name] + g[name].sum(0) for name in x}
            risk = risk + losses.sum()
        model.zero_grad(set_to_none=True)
        for name in x:
            model.get_parameter(name).grad = total[name] / len(b)
        return _averaged(model, risk / len(b))

    return update_per_sample if per_sample else update


def ball_stability(
    eps: float,
    *,
    steps: int,
    step_size: StepSize | None = None,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Update:
    """The gradient at the worst parameters found in ``‖η‖₂ <= eps``: ε-stability (slides 6, 43).

    Proximal gradient ascent (slide 12) on ``R(x + η)``, the minibatch's mean loss, along unit
    gradients: ``η ← project(η + αᵢ ∇R(x + η) / ‖∇R(x + η)‖₂)``. Of x and all points met the one
    of highest loss counts, so that with one step it is sharpness_aware wherever SAM's step raises
    the loss, and erm elsewhere. ``steps + 1`` gradients a step, one more with a generator.

    step_size: a number, one a step, or None for ``αᵢ = eps (1 + cos(π i / steps))``.
    generator: draws the point where the ascent begins, uniformly in the ball; None begins at
    η = 0, and stays there if x is stationary.
    Returns the mean loss at the worst point. Parameters, buffers and batch norm as in
    sharpness_aware. Raises ValueError for eps < 0, steps < 1 and bad step sizes.
    """
    ball, descend = _ball("eps", eps), erm(loss)
    if step_size is None and steps >= 1:
        step_size = [eps * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    along = [L2(alpha) for alpha in step_sizes(0.0 if step_size is None else step_size, steps)]

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        best = descend(model, a, b)
        worst, g = [p.grad for p in model.parameters()], _gradient(model)
        eta = torch.zeros_like(g)
        for step in ([] if generator is None else [None]) + along:
            if step is None:
                eta = ball.sample(g.shape, generator).to(g)
            else:
                eta = ball.project(eta + step.lmo(g))
            with _moved(model, eta):
                risk = descend(model, a, b)
            g = _gradient(model)
            if not risk <= best:  # NaN counts as worst: fit then says what to try
                best, worst = risk, [p.grad for p in model.parameters()]
        for p, gradient in zip(model.parameters(), worst, strict=True):
            p.grad = gradient
        return best

    update.generators = () if generator is None else (generator,)
    return update


def mean_loss(model: nn.Module, a: Tensor, b: Tensor, loss: Loss) -> Tensor:
    """``(1/m) Σ L(h_x(a_i), b_i)`` with its graph; ValueError unless loss gives one value each."""
    losses = loss(model(a), b)
    if losses.shape != b.shape:
        raise ValueError(
            f"loss must return one value a sample, {list(b.shape)}, got {list(losses.shape)}: "
            'use reduction="none"'
        )
    return losses.mean()


def _averaged(model: nn.Module, risk: Tensor) -> Tensor:
    """Every ``.grad``, and the loss, as the mean over the processes' shares of the minibatch."""
    processes.mean_([p.grad for p in _trained(model) if p.grad is not None] + [risk])
    return risk


def _ball(name: str, radius: float) -> L2:
    if not 0 <= radius < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {radius}")
    return L2(radius)


def _trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _gradient(model: nn.Module) -> Tensor:
    """Every ``.grad`` as one row [1, p], the gradient of a function of p parameters."""
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in _trained(model)]
    return torch.cat([row.flatten() for row in rows])[None]


def _split(eta: Tensor, x: Iterable[Tensor]) -> list[Tensor]:
    """Rows [m, p] as one tensor [m, *shape] for each parameter of x."""
    shapes = [p.shape for p in x]
    parts = eta.split([shape.numel() for shape in shapes], 1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def _moved(model: nn.Module, eta: Tensor) -> Iterator[None]:
    """The model at x + η, η [1, p]; then its parameters and buffers are put back, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for p, [e] in zip(_trained(model), _split(eta, _trained(model)), strict=True):
                p.add_(e)
        torch.clear_autocast_cache()  # autocast's copies of the weights are of those before
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
        torch.clear_autocast_cache()
