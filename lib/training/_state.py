"""The state of a training run: where the loop of slide 23 stands, so that it can be kept.

``lib.training.fit`` is the loop. A ``TrainingState`` draws its minibatches, takes the optimizer's
step, and holds all that the next steps depend on besides the model and the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.data import Images
from lib.runs import processes
from lib.runs.session import require_at_most, require_finite
from lib.training._updates import Gradient

Evaluate = Callable[[nn.Module], Mapping[str, float]]
DIVERGED = 1000  # times the first loss, or times 1 where that was less
POSITION = ("epoch", "batch", "order", "total", "seen", "limit", "history")


class Sampler(Protocol):
    """Chooses the images to train on, such as ``lib.fairness.ClassFocusedSampler``.

    A ``settings``, a mapping, may say what it is; else its attributes do. They are compared when
    a run goes on from its checkpoint.

    >>> from lib.fairness import ClassFocusedSampler
    >>> len(ClassFocusedSampler(torch.tensor([0, 1, 1])).draw(5))
    5
    """

    def draw(self, n: int) -> Tensor: ...  # indices [n]
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(eq=False)
class TrainingState:
    """Where a run stands; it can be saved between any two steps."""

    model: nn.Module
    data: Images
    update: Gradient
    epochs: int
    batch_size: int
    optimizer: Optimizer
    schedule: LRScheduler | None
    schedule_each: str
    sampler: Sampler | None
    generator: torch.Generator  # of the order of the images

    epoch: int = 0  # how many are done
    batch: int = 0  # how many of this epoch are done
    order: Tensor | None = None  # of the images in this epoch
    total: float = 0.0  # the sum of this epoch's losses
    seen: int = 0  # their number
    size: int = 0  # of the last minibatch, on all processes
    limit: float = 0.0  # above it a loss diverges; 0 until the first loss is known
    history: dict[str, list[float]] = field(default_factory=dict)

    @property
    def batches(self) -> int:
        """Of an epoch."""
        return ceil(len(self.data) / self.batch_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What of a position must be as it was: nothing."""
        return {}

    def objects(self) -> dict[str, Any]:
        """What a checkpoint keeps, besides the model."""
        state = self.update if hasattr(self.update, "state_dict") else None
        return {
            "run": self,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sampler": self.sampler,
            "update's state": getattr(self.update, "state", state),
        }

    def described(self) -> dict[str, Any]:
        """What must be the same when the run goes on."""
        settings = {"update": self.update, "batch_size": self.batch_size}
        settings |= {"schedule_each": self.schedule_each}
        return settings | {"images": self.data.a, "labels": self.data.b}

    def minibatch(self) -> tuple[Tensor, Tensor]:
        """The next one's images and labels; of several processes, this one's rows."""
        n, m = len(self.data), self.batch_size
        if self.sampler is not None:
            i = self.sampler.draw(m)
        else:
            if self.order is None:
                self.order = torch.randperm(n, generator=self.generator)
            i = self.order[self.batch * m : (self.batch + 1) * m]
        self.size, i = len(i), processes.local_rows(i)
        return self.data.a[i], self.data.b[i]

    def step(self, loss: Tensor) -> None:
        """The optimizer's step, and the schedule's; FloatingPointError where the run diverges."""
        value = float(loss.detach())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not gradients:
            raise ValueError("update must set .grad of the model's parameters, it set none")
        require_finite(loss=value, gradient=gradients)
        self.limit = self.limit or DIVERGED * max(1.0, abs(value))
        if abs(value) > self.limit:
            raise FloatingPointError(f"the loss is {value:g} and diverges, above {self.limit:g}")
        self.optimizer.step()
        if self.schedule is not None and self.schedule_each == "minibatch":
            self.schedule.step()
        self.total, self.seen = self.total + value * self.size, self.seen + self.size
        self.batch += 1

    def end_epoch(self, evaluate: Evaluate) -> None:
        """Each number's value goes into the history, and the learning rate to its next one."""
        self.model.eval()
        found = evaluate(self.model)
        if not isinstance(found, Mapping) or "loss" in found:
            raise ValueError(
                f'evaluate must return a dictionary of numbers, none of them "loss", which is that '
                f"of the training, got {found!r}: name it otherwise"
            )
        for name, value in {"loss": self.total / self.seen, **found}.items():
            self.history.setdefault(name, []).append(float(value))
        if self.schedule is not None and self.schedule_each == "epoch":
            self.schedule.step()
        self.model.train()
        self.epoch, self.batch, self.order = self.epoch + 1, 0, None
        self.total, self.seen = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in POSITION}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_at_most(self.epochs, state["epoch"] + (state["batch"] > 0), "epoch")
        vars(self).update({name: state[name] for name in POSITION})
