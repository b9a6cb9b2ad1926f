"""Training: minimize ``(1/n) Σ L(h_x(a_i), b_i)``, or its adversarial kin, over x (slides 5, 23).

``fit`` is the loop of slide 23, the same for every *update*: ``update(model, a, b)`` sets each
parameter's ``.grad`` for one minibatch and returns the loss. The updates stand beside it.
A run that is killed goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.attacks import cross_entropy
from lib.data import Images
from lib.models import predict
from lib.runs import processes
from lib.training._sharpness_aware import ball_stability, sharpness_aware
from lib.training._state import Run, Sampler
from lib.training._updates import Update, adversarial, danskin, erm

__all__ = [
    "accuracy",
    "adversarial",
    "ball_stability",
    "cross_entropy",
    "danskin",
    "erm",
    "fit",
    "sharpness_aware",
]


def fit(
    model: nn.Module,
    data: Images,
    update: Update,
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
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("images", len(data))):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    processes.check(images=len(data), batch_size=batch_size)
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    if not every >= 0:
        raise ValueError(f"every must be >= 0 seconds, got {every}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision must be "float32" or "bfloat16", got {precision!r}')
    if schedule_each not in ("epoch", "minibatch"):
        raise ValueError(f'schedule_each must be "epoch" or "minibatch", got {schedule_each!r}')
    if next(model.parameters(), None) is None:
        raise ValueError("the model has no parameters to train")
    from tqdm import tqdm

    model.to(device, memory_format=torch.channels_last if channels_last else None)
    data = data.to(next(model.parameters()).device)
    evaluate = evaluate or (lambda model: {"accuracy": accuracy(model, data)})
    optimizer = (optimizer or partial(torch.optim.Adam, lr=lr))(model.parameters())
    schedule = schedule and schedule(optimizer)
    run = Run(model, data, epochs, batch_size, seed, optimizer, schedule, schedule_each, sampler)
    gradient = _gradient(update, model, precision, channels_last, compile)
    settings = {"precision": precision, "channels_last": channels_last, "compile": compile}
    settings["schedule_each"] = schedule_each
    hide = None if progress is None else not progress

    with (
        run.kept_at(checkpoint, every, update, settings),
        tqdm(total=epochs, initial=run.epoch, unit="epoch", disable=hide) as bar,
    ):
        while run.epoch < epochs:
            for a, b in run.minibatches():  # ii. select a minibatch
                loss = gradient(a, b)  # i, iii. its mean gradient g
                run.step(loss)  # iv. x ← x − α g
            run.end_epoch(evaluate)
            bar.set_postfix({name: f"{of[-1]:.4f}" for name, of in run.history.items()})
            bar.update()
    return run.history


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, *, batch_size: int = 1000) -> float:
    """The share of images that the model classifies correctly, in [0, 1].

    The prediction is that of ``models.predict``. Leaves the model in evaluation mode.
    """
    model.eval()
    right = 0
    for a, b in zip(data.a.split(batch_size), data.b.split(batch_size), strict=True):
        right += int((predict(model(a)) == b).sum())
    return right / len(data)


def _gradient(
    update: Update, model: nn.Module, precision: str, channels_last: bool, compile: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The update of this model, in the precision, layout and form that fit was asked for."""
    network = torch.compile(model, dynamic=False) if compile else model  # the last batch is shorter
    autocast = torch.autocast(
        next(model.parameters()).device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )
    layout = torch.channels_last if channels_last else torch.preserve_format

    def gradient(a: Tensor, b: Tensor) -> Tensor:
        with autocast:
            return update(network, a.to(memory_format=layout), b)

    return gradient
