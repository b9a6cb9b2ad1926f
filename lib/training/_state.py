"""The state of a training run: where the loop of slide 23 stands, and how it is kept and resumed.

``lib.training.fit`` is the loop. A ``Run`` draws its minibatches, takes the optimizer's step or
stops where the training diverges, and is saved at any step with all that the next ones depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.data import Images
from lib.runs import CheckpointError, processes
from lib.runs.checkpoints import Keeper, checksum, torch_seeded
from lib.training._updates import Update

DIVERGED = 1000  # times the first loss, or times 1 where that was less
_POSITION = ("epoch", "batch", "order", "total", "seen", "limit", "history")


class Sampler(Protocol):
    """Chooses the images to train on, such as ``lib.fairness.ClassFocusedSampler``."""

    def draw(self, n: int) -> Tensor: ...  # indices [n]
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(eq=False)
class Run:
    """The state of a run: its parts, and where it stands, so that it can be saved at any step."""

    model: nn.Module
    data: Images
    epochs: int
    batch_size: int
    seed: int
    optimizer: Optimizer
    schedule: LRScheduler | None
    schedule_each: str
    sampler: Sampler | None

    epoch: int = 0  # how many are done
    batch: int = 0  # how many of this epoch are done
    order: Tensor | None = None  # of the images in this epoch
    total: float = 0.0  # the sum of this epoch's losses
    seen: int = 0  # their number
    limit: float = 0.0  # above it a loss diverges; 0 until the first loss is known
    history: dict[str, list[float]] = field(default_factory=dict)

    def minibatches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the epoch; between two minibatches, when it is time, a checkpoint."""
        self.model.train()
        n, m = len(self.data), self.batch_size
        if self.order is None and self.sampler is None:
            self.order = torch.randperm(n, generator=self.generators[0])
        while self.batch < ceil(n / m):
            self.keeper.save_if_due()
            self.before = [value.clone() for value in self.model.state_dict().values()]
            if self.sampler is None:
                i = self.order[self.batch * m : (self.batch + 1) * m]
            else:
                i = self.sampler.draw(m)
            self.size, i = len(i), processes.share(i)
            yield self.data.a[i], self.data.b[i]
            self.batch += 1

    def step(self, loss: Tensor) -> None:
        """The optimizer's step; where the run has gone wrong, the model is put back instead."""
        value = float(loss.detach())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not isfinite(get_total_norm(gradients) + value):
            self._stop(f"the loss is {value} or its gradient is not finite")
        self.limit = self.limit or DIVERGED * max(1.0, abs(value))
        if abs(value) > self.limit:
            self._stop(f"the loss is {value:g} and diverges, being above {self.limit:g}")
        self.optimizer.step()
        if not isfinite(get_total_norm(self.model.parameters())):
            self._stop("a weight is not finite after a step")
        if self.schedule is not None and self.schedule_each == "minibatch":
            self.schedule.step()
        self.total, self.seen = self.total + value * self.size, self.seen + self.size

    @torch.no_grad()
    def _stop(self, problem: str) -> None:
        for value, before in zip(self.model.state_dict().values(), self.before, strict=True):
            value.copy_(before)
        lr = self.optimizer.param_groups[0]["lr"]
        kept = f", and so was the checkpoint {self.keeper.path}" if self.keeper.path else ""
        raise FloatingPointError(
            f"{problem}, in epoch {self.epoch + 1}: try a smaller lr than {float(lr):g}, or check "
            f"the data and the loss; the weights before this step were kept{kept}"
        )

    def end_epoch(self, evaluate: Callable[[nn.Module], Mapping[str, float]]) -> None:
        """Each number's value goes into the history, and the learning rate to its next one."""
        self.model.eval()
        values = {"loss": self.total / self.seen, **evaluate(self.model)}
        for name, value in values.items():
            self.history.setdefault(name, []).append(float(value))
        if self.schedule is not None and self.schedule_each == "epoch":
            self.schedule.step()
        self.epoch, self.batch, self.order = self.epoch + 1, 0, None
        self.total, self.seen = 0.0, 0
        if self.epoch == self.epochs:
            self.keeper.save()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _POSITION}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        begun = state["epoch"] + (state["batch"] > 0)
        if begun > self.epochs:
            raise CheckpointError(
                f"{self.keeper.path} has begun epoch {begun}, more than epochs={self.epochs}: ask "
                f"for epochs={begun} or more, or give another path"
            )
        vars(self).update({name: state[name] for name in _POSITION})

    @contextmanager
    def kept_at(
        self, path: str | Path | None, every: float, update: Update, settings: dict[str, Any]
    ) -> Iterator[None]:
        """Go on from the checkpoint if it is there, and be kept in it from now on."""
        device = next(self.model.parameters()).device
        parts = {"run": self, "model": self.model, "optimizer": self.optimizer}
        parts |= {"schedule": self.schedule, "sampler": self.sampler}
        parts["update's state"] = update if hasattr(update, "state_dict") else None
        if path:
            settings |= {"batch_size": self.batch_size, "seed": self.seed, "device": device.type}
            settings |= {"images": len(self.data), "CRC-32": checksum(self.data.a, self.data.b)}
            settings["update"] = getattr(update, "__qualname__", type(update).__name__)
        try:
            with torch_seeded(self.seed, device) as of_torch:
                shuffle = torch.Generator().manual_seed(self.seed)
                self.generators = [shuffle, *of_torch, *getattr(update, "generators", ())]
                self.keeper = Keeper(path, parts, self.generators, settings, every=every)
                self.keeper.start()
                yield
        finally:
            self.model.eval()
