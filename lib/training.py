"""Training loops: minimize ``(1/n) Σ L(h_x(a_i), b_i)`` over x (slides 5 and 23).

An *update* says what is minimized: ``update(model, a, b)`` sets each parameter's ``.grad`` for
one minibatch and returns the loss. ``fit`` is the loop around it, the same for every update.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.attacks import Loss, cross_entropy
from lib.data import Images

Update = Callable[[nn.Module, Tensor, Tensor], Tensor]  # sets .grad, returns the mean loss


def erm(loss: Loss = cross_entropy) -> Update:
    """Empirical risk minimization: the gradient of ``(1/m) Σ L(h_x(a_i), b_i)`` (slide 5, def-erm).

    The sum is over the minibatch, so that in expectation it is the gradient of the risk R_n.
    loss: (logits [m, classes], labels [m]) -> [m]; one that returns another shape, such as the
    batch's mean, is refused with a ValueError.
    """

    def update(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        losses = loss(model(a), b)
        if losses.shape != b.shape:
            raise ValueError(
                f"loss must return one value a sample, {list(b.shape)}, got {list(losses.shape)}: "
                'use reduction="none"'
            )
        risk = losses.mean()
        risk.backward()
        return risk.detach()

    return update


def fit(
    model: nn.Module,
    data: Images,
    update: Update,
    *,
    epochs: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, list[float]]:
    """Minibatch training with Adam (Kingma and Ba, 2015); the loop of slide 23.

    Every epoch visits every image once, in a new order; the last minibatch may be smaller. The
    model is in training mode during the updates and in evaluation mode afterwards. The same
    seed gives the same weights, bit for bit on a CPU.

    progress: show a bar with the time left; None shows one on a terminal only.
    Returns ``{"loss": [...], "accuracy": [...]}``, one value an epoch: the mean over the images
    of the loss that update returned, and the accuracy on ``data`` at the epoch's end, in [0, 1].

    Raises ValueError for settings out of range, and FloatingPointError as soon as a loss or a
    gradient is not finite; the model then has the weights from before that step.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("images", len(data))):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    from tqdm import trange

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history: dict[str, list[float]] = {"loss": [], "accuracy": []}
    try:
        epochs_bar = trange(
            epochs, unit="epoch", disable=None if progress is None else not progress
        )
        for epoch in epochs_bar:
            model.train()
            total = 0.0
            for batch in torch.randperm(len(data), generator=generator).split(batch_size):
                loss = float(update(model, data.a[batch], data.b[batch]).detach())
                _check_finite(model, loss, epoch, lr)
                optimizer.step()
                total += loss * len(batch)
            history["loss"].append(total / len(data))
            history["accuracy"].append(accuracy(model, data))
            epochs_bar.set_postfix({name: f"{of[-1]:.4f}" for name, of in history.items()})
    finally:
        model.eval()
    return history


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, *, batch_size: int = 1000) -> float:
    """The share of images that the model classifies correctly, in [0, 1].

    The prediction is the largest logit's class; of a model with a single logit, 1 where it is
    positive and else 0. Leaves the model in evaluation mode.
    """
    model.eval()
    right = 0
    for a, b in zip(data.a.split(batch_size), data.b.split(batch_size), strict=True):
        h = model(a)
        prediction = h.argmax(1) if h.shape[1] > 1 else (h[:, 0] > 0).long()
        right += int((prediction == b).sum())
    return right / len(data)


def _check_finite(model: nn.Module, loss: float, epoch: int, lr: float) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not torch.isfinite(torch.nn.utils.get_total_norm(gradients) + loss):
        raise FloatingPointError(
            f"the loss is {loss} or its gradient is not finite, in epoch {epoch + 1}: try a "
            f"smaller lr than {lr} or check the data; the weights before this step were kept"
        )
