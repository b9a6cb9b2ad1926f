"""Training: minimize ``(1/n) Σ L(h_x(a_i), b_i)``, or its adversarial kin, over x (slides 5, 23).

``fit`` is the loop of slide 23, the same for every *update*: ``update(model, a, b)`` sets each
parameter's ``.grad`` for one minibatch and returns the loss. The updates stand beside it.
A run that is killed goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.data import Images
from lib.models import predict
from lib.runs import processes
from lib.runs.session import Session
from lib.training._state import Sampler, TrainingState


def fit(
    model: nn.Module,
    data: Images,
    update: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    epochs: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    schedule_each: str = "epoch",
    sampler: Sampler | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    every: float = 60.0,
    device: str | torch.device | None = None,
    precision: str = "float32",
    channels_last: bool = False,
    compile: bool = False,
    progress: bool | None = None,
) -> dict[str, list[float]]:
    """Minibatch training, the loop of slide 23, by default with Adam (Kingma and Ba, 2015).

    Every epoch visits every image once, in a new order; the last minibatch may be smaller. The
    model is in training mode during the updates and in evaluation mode afterwards. The same
    seed gives the same weights, bit for bit on a CPU: it sets the order, and torch's global
    generators (from which dropout draws), which the caller finds as they were.

    optimizer: parameters -> optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``; None: Adam
    with ``lr``. schedule: optimizer -> learning rate schedule, stepped after each epoch, or with
    ``schedule_each="minibatch"`` after each of these.
    sampler: draws each minibatch; an epoch is then ``ceil(n / batch_size)`` draws.
    evaluate: model (in evaluation mode) -> numbers for the history, at each epoch's end; None:
    ``{"accuracy": accuracy(model, data)}``. It must not change what the training depends on.
    checkpoint: a file to go on from if it is there. It is written before the first step, about
    every ``every`` seconds and at the end. A run killed at any moment and started again with the
    same arguments ends with the weights and the history, bit for bit on a CPU, of one that was
    not. With more epochs, a finished run goes on. To use the weights alone:
    ``model.load_state_dict(checkpoints.load(path)["model"])``.
    device: where to train (None: where the model is); the model stays there.
    precision: of the updates, "float32", or "bfloat16" by autocast. channels_last: the memory
    layout of images and kernels. compile: run the updates on ``torch.compile(model)``.
    progress: show a bar with the time left; None shows one on a terminal only.
    Under torchrun each process takes its share of every minibatch, and the run is that of one
    process up to rounding (lib.runs.processes): images and batch_size must be multiples of their
    number.

    Returns ``{"loss": [...], "accuracy": [...]}``, one value an epoch: the mean over the images
    of the loss that update returned, and what evaluate says.

    Raises ValueError for settings out of range; CheckpointError for a checkpoint that is damaged
    or of other settings, data or model; and FloatingPointError as soon as a loss, a gradient or
    a weight is not finite, or a minibatch's loss is above 1000 times the run's first one (or
    above 1000, if that was below 1). The model is then as before that step, and the checkpoint
    remains that of an earlier one.
    """
    _check(data, epochs=epochs, batch_size=batch_size, lr=lr, schedule_each=schedule_each)
    session = Session(
        {"model": model},
        seed=seed,
        device=device,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
    )
    settings = {"update": update, "batch_size": batch_size, "schedule_each": schedule_each}
    settings |= {"images": data.a, "labels": data.b}
    data = data.to(session.device)
    evaluate = evaluate or (lambda model: {"accuracy": accuracy(model, data)})
    optimizer = _optimizer(model, optimizer or partial(torch.optim.Adam, lr=lr))
    schedule = schedule and schedule(optimizer)
    order = torch.Generator().manual_seed(seed)
    state = TrainingState(
        model, data, epochs, batch_size, optimizer, schedule, schedule_each, sampler, order
    )
    objects = {"run": state, "optimizer": optimizer, "schedule": schedule, "sampler": sampler}
    objects["update's state"] = _state_of(update)
    layout = torch.channels_last if channels_last else torch.preserve_format

    with (
        session.resumed(objects, settings, {"order": order}),
        session.bar(epochs, state.epoch, "epoch") as bar,
    ):
        while state.epoch < epochs:
            while state.batch < state.batches:
                session.checkpoint.save_if_due()
                a, b = state.minibatch()  # ii. select a minibatch
                with session.step(f"epoch {state.epoch + 1}"):
                    with session.autocast:  # i, iii. its mean gradient g
                        loss = update(session.compiled["model"], a.to(memory_format=layout), b)
                    state.step(loss)  # iv. x ← x − α g
            state.end_epoch(evaluate)
            if state.epoch == epochs:
                session.checkpoint.save()
            bar.set_postfix({name: f"{of[-1]:.4f}" for name, of in state.history.items()})
            bar.update()
    return state.history


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
            right += int((predict(model(a.clone())) == b).sum())
    finally:
        for layer, mode in modes:
            layer.training = mode
    return right / len(data)


def _check(data: Images, *, lr: float, schedule_each: str, **sizes: int) -> None:
    """ValueError for settings that are out of range, before anything changes."""
    for name, value in (sizes | {"images": len(data)}).items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    processes.require_divisible(images=len(data), batch_size=sizes["batch_size"])
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    if schedule_each not in ("epoch", "minibatch"):
        raise ValueError(f'schedule_each must be "epoch" or "minibatch", got {schedule_each!r}')


def _optimizer(model: nn.Module, make: Callable[[Iterable[nn.Parameter]], Optimizer]) -> Optimizer:
    """The optimizer of the model's parameters; ValueError for one that holds others."""
    if isinstance(make, Optimizer):
        raise ValueError(
            "optimizer must be a function of the parameters, such as partial(torch.optim.SGD, "
            f"lr=0.1), got a {type(make).__name__}"
        )
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


def _state_of(update: Any) -> Any:
    """What of an update changes from step to step, and so has to be kept."""
    return update if hasattr(update, "state_dict") else getattr(update, "state", None)
