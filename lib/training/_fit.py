"""Training: minimize ``(1/n) Σ L(h_x(a_i), b_i)``, or its adversarial kin, over x (slides 5, 23).

``fit`` is the loop of slide 23, the same for every *update*: ``update(model, a, b)`` sets each
parameter's ``.grad`` for one minibatch and returns the loss. The updates stand beside it.

A run that is killed at any moment and started again with the same arguments ends with the weights
and the history, bit for bit on a CPU, of one that was not. With more epochs, a finished run goes
on. Under torchrun each process takes its rows of every minibatch, and the run is that of one
process up to rounding (lib.runs.processes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.checks import check_counts, check_function, check_logits, check_number
from lib.data import Images, check_images
from lib.models import predict
from lib.runs import processes
from lib.runs.session import Session
from lib.training._sharpness_aware import ball_stability, sharpness_aware
from lib.training._state import Evaluate, Sampler, TrainingState
from lib.training._updates import Gradient, adversarial, danskin, erm

MAKERS: tuple[Any, ...] = (erm, adversarial, danskin, sharpness_aware, ball_stability)


def fit(
    model: nn.Module,
    data: Images,
    update: Gradient,
    *,
    epochs: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    schedule_each: str = "epoch",
    sampler: Sampler | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: str | Path | None = None,
    every: float = 60.0,
    device: str | torch.device | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    compile: bool = False,
    progress: bool | None = None,
) -> dict[str, list[float]]:
    """Minibatch training, the loop of slide 23, by default with Adam (Kingma and Ba, 2015).

    Every epoch visits every image once, in a new order that depends on the seed alone; the last
    minibatch may be smaller. The model is in training mode during the updates, and afterwards in
    evaluation mode.

    optimizer: parameters -> optimizer, as ``partial(torch.optim.SGD, lr=0.1)``; None: Adam with lr.
    schedule: optimizer -> learning rates; it steps after each schedule_each, "epoch" or
    "minibatch". sampler: draws each of an epoch's ``ceil(n / batch_size)`` minibatches. evaluate:
    model -> numbers at each epoch's end, which must not change what the training depends on;
    None: ``{"accuracy": accuracy(model, data)}``.
    seed, checkpoint, every, device, precision, channels_last, compile, progress: see runs.Session.

    Returns {"loss": [...], "accuracy": [...]}, of each epoch the mean loss over the images and
    what evaluate says. Raises ValueError for settings out of range; CheckpointError for one that
    is damaged or of another run; FloatingPointError for a number or weight that is not finite and
    for a loss above 1000 times the first one (or 1000), with the weights before that step.

    >>> from lib import data, models
    >>> from lib.training import erm
    >>> history = fit(models.mlp(), data.digits()[:500], erm(), epochs=2)
    >>> history["loss"][1] < history["loss"][0]
    True
    """
    _check(data, update, epochs=epochs, batch_size=batch_size, lr=lr, schedule_each=schedule_each)
    where: dict[str, Any] = {"device": device, "precision": precision, "compile": compile}
    kept: dict[str, Any] = {"checkpoint": checkpoint, "every": every, "progress": progress}
    session = Session({"model": model}, seed=seed, channels_last=channels_last, **where, **kept)
    data = data.to(session.device)
    steps = _optimizer(model, optimizer or partial(torch.optim.Adam, lr=lr))
    rates = None if schedule is None else schedule(steps)
    order = torch.Generator().manual_seed(seed)
    sizes = epochs, batch_size
    state = TrainingState(model, data, update, *sizes, steps, rates, schedule_each, sampler, order)
    with session.resumed(state.objects(), state.described(), {"order": order}):
        _train(session, state, evaluate or (lambda model: {"accuracy": accuracy(model, data)}))
    return state.history


def _train(session: Session, state: TrainingState, evaluate: Evaluate) -> None:
    """The algorithm of slide 23, from line 2 on, in epochs."""
    with session.bar(state.epochs, state.epoch, "epoch") as bar:
        while state.epoch < state.epochs:
            while state.batch < state.batches:
                session.checkpoint.save_if_due()
                a, b = state.minibatch()  # ii. select a minibatch
                with session.step(f"epoch {state.epoch + 1}"):
                    with session.autocast:  # i, iii. its mean gradient g
                        loss = state.update(session.compiled["model"], session.laid_out(a), b)
                    state.step(loss)  # iv. x ← x − α g
            state.end_epoch(evaluate)
            if state.epoch == state.epochs:
                session.checkpoint.save()
            bar.set_postfix({name: f"{of[-1]:.4f}" for name, of in state.history.items()})
            bar.update()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, *, batch_size: int = 1000) -> float:
    """The share of images that the model classifies correctly, in [0, 1].

    The prediction is that of ``models.predict``, in evaluation mode; the model is left in the
    mode that it was in, and the images are what they were, though a model changes its input.
    Raises ValueError for no images and batch_size < 1.

    >>> from lib import data, models
    >>> round(accuracy(models.mlp(), data.digits("test")), 1)
    0.1
    """
    check_images(data)
    if len(data) == 0 or batch_size < 1:
        raise ValueError(
            f"accuracy needs at least one image and batch_size >= 1, got {len(data)} images and "
            f"batch_size={batch_size}"
        )
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        right = 0
        for a, b in zip(data.a.split(batch_size), data.b.split(batch_size), strict=True):
            logits = model(a.clone())
            check_logits(logits, len(b))
            right += int((predict(logits) == b).sum())
    finally:
        for layer, mode in modes:
            layer.training = mode
    return right / len(data)


def _check(data: Images, update: Gradient, *, lr: float, schedule_each: str, **sizes: int) -> None:
    """ValueError for settings that are out of range, before anything changes."""
    check_images(data)
    check_counts(**sizes, images=len(data))
    if not callable(update) or update in MAKERS:
        got = f"{update.__name__} itself: call it" if update in MAKERS else repr(update)
        raise ValueError(f"update must be what erm() or its kin return, got {got}")
    processes.require_divisible(images=len(data), batch_size=sizes["batch_size"])
    check_number("lr", lr, positive=True)
    if schedule_each not in ("epoch", "minibatch"):
        raise ValueError(f'schedule_each must be "epoch" or "minibatch", got {schedule_each!r}')


def _optimizer(model: nn.Module, make: Callable[[Iterable[nn.Parameter]], Optimizer]) -> Optimizer:
    """The optimizer of the model's parameters; ValueError for one that holds others."""
    if isinstance(make, Optimizer):
        raise ValueError(
            "optimizer must be a function of the parameters, such as partial(torch.optim.SGD, "
            f"lr=0.1), got a {type(make).__name__}"
        )
    check_function("optimizer", make, "partial(torch.optim.SGD, lr=0.1)")
    optimizer = make(model.parameters())
    of_model = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in of_model for p in held)
    if strangers:
        raise ValueError(
            f"optimizer holds {strangers} parameters that are not the model's: make it of the "
            "parameters that it is given"
        )
    return optimizer
