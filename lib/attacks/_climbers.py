"""What the search of an attack holds: its sweeps, a look at points, the samples that climb.

``_search`` is the loop over these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.attacks._losses import margin, with_both
from lib.balls import Ball

# Cross-entropy weighs the rivals of a class by their logits, and is flat where these are large.
# So that a factor of the logits changes nothing, each sample's are scaled to one spread: the
# greatest minus the mean of the others, at the clean input. Digit models have about 10.
SPREAD = 12.0


IN_PLACE = (
    "the model changes its input in place: let it begin with a copy (a = a - mean, not a -= mean)"
)


class Sweep(NamedTuple):
    """Steepest steps, one after the other; the last point counts too."""

    step_lengths: Sequence[float]
    in_radii: bool = True  # the lengths are multiples of the radius
    logit_scale: float = 1.0  # the steps climb the loss of so many times the logits
    in_doubt_only: bool = False  # samples that are not in doubt stay behind

    def steps(self, ball: Ball) -> list[Ball]:
        """The ball of each step, which holds its moves."""
        unit = ball.eps if self.in_radii else 1.0
        return [replace(ball, eps=length * unit) for length in self.step_lengths]


@dataclass
class Look:
    """What the model says at points [n, ...], and how to climb from there."""

    points: Tensor
    logits: Tensor  # [n, classes]
    value: Tensor  # [n], by which the worst is chosen
    tied_by_margin: bool  # where a loss is flat, the margin decides between equal values
    leaf: Tensor  # the points in the graph of goal
    goal: Tensor  # the sum that the steps climb
    logit_scale: float
    rows: Tensor | None = None  # of the leaf, if only some are still searched

    def part(self, rows: Tensor) -> Look:
        """The same for some of the samples."""
        points, logits, value = _rows(rows, self.points, self.logits, self.value)
        return replace(self, points=points, logits=logits, value=value, rows=rows)

    def gradient(self) -> Tensor:
        """The goal's gradient [n, ...] at the points."""
        g = None
        if self.goal.requires_grad:
            [g] = torch.autograd.grad(self.goal, self.leaf, allow_unused=True)
        if g is None:
            raise ValueError(
                "the model's logits have no gradient in its input: is it under no_grad, detached, "
                "or computed outside torch?"
            )
        return g if self.rows is None else g.index_select(0, self.rows)


class Climbers(NamedTuple):
    """The samples of a search, and the worst point that each has met."""

    ids: Tensor  # [n], their places in the batch
    a: Tensor  # [n, ...], the clean inputs
    b: Tensor  # [n], the labels
    factor: Tensor  # [n, 1], of the logits
    worst: Tensor  # [n, ...], the point of highest value
    value: Tensor  # [n], the value there
    logits: Tensor  # [n, classes], the logits there

    def part(self, rows: Tensor) -> Climbers:
        """Some of the samples."""
        return Climbers(*_rows(rows, *self))

    def keep_worst(self, look: Look) -> Climbers:
        """The worst points, after a look; it hands over its points' memory."""
        higher = look.value > self.value
        if look.tied_by_margin:
            closer = margin(look.logits, self.b) > margin(self.logits, self.b)
            higher |= (look.value == self.value) & closer
        return self._replace(
            worst=chosen_rows(higher, look.points, self.worst),
            value=torch.where(higher, look.value, self.value),
            logits=torch.where(higher[:, None], look.logits, self.logits),
        )


def scale_of(logits: Tensor) -> Tensor:
    """The factor [n, 1] that gives each sample's logits the same spread; 1 where they have none."""
    logits = with_both(logits)
    top, classes = logits.amax(1, keepdim=True), logits.shape[1]
    spread = (top - logits.mean(1, keepdim=True)) * classes / (classes - 1)  # from the others' mean
    return torch.where((spread > 0) & (spread < torch.inf), SPREAD / spread, 1.0)


def in_doubt(climbers: Climbers) -> Tensor:
    """The samples whose own class is the likeliest, by less than 1 in the scaled logits."""
    lead = -margin(climbers.logits * climbers.factor, climbers.b)
    return torch.where((lead >= 0) & (lead < 1))[0]


def check_logits(logits: Tensor, points: Tensor) -> None:
    """ValueError unless logits are floats [n, classes]."""
    fine = torch.is_tensor(logits) and logits.is_floating_point()
    if not fine or logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] == 0:
        what = f"{logits.dtype} {list(logits.shape)}" if torch.is_tensor(logits) else type(logits)
        raise ValueError(
            f"the model must return logits, floats [{len(points)}, classes], got {what}: "
            "for a single logit return z[:, None]"
        )


def check_labels(b: Tensor, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the model; one logit tells two apart."""
    classes = max(2, logits.shape[1])
    if len(b) and not 0 <= b.min() <= b.max() < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(b.min())}..{int(b.max())}")


def chosen_rows(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where a sample is chosen, else old; new may be overwritten."""
    if new.is_cuda:  # without waiting for the device
        return torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), new, old)
    [kept] = torch.where(~chosen)
    if len(kept) == 0:
        return new
    return new.index_copy_(0, kept, old.index_select(0, kept))


def _rows(index: Tensor, *tensors: Tensor) -> list[Tensor]:
    """``t[index]`` of each: on a CPU index_select copies images five times as fast."""
    return [t.index_select(0, index) for t in tensors]
