"""What a search holds: its sweeps, a look at some points, and the samples on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.attacks._losses import margin
from lib.balls import Ball


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
    goal: Tensor  # [n], which the steps climb
    logit_scale: float
    rows: Tensor | None = None  # of the leaf, if only some are still searched

    def part(self, rows: Tensor) -> Look:
        """The same for some of the samples."""
        points, logits, value = rows_of(rows, self.points, self.logits, self.value)
        return replace(self, points=points, logits=logits, value=value, rows=rows)

    def gradient(self) -> Tensor:
        """The goal's gradient [n, ...] at the points."""
        g = None
        if self.goal.requires_grad:
            ones = torch.ones_like(self.goal)
            [g] = torch.autograd.grad(self.goal, self.leaf, ones, allow_unused=True)
        if g is None:
            raise ValueError(
                "the model's logits have no gradient in its input: look for no_grad, for detach, "
                "and for what is computed outside torch"
            )
        return g if self.rows is None else g.index_select(0, self.rows)


class Climbers(NamedTuple):
    """The samples of a search, and the worst point that each has met."""

    sample: Tensor  # [n], its place in the batch
    a: Tensor  # [n, ...], the clean inputs
    b: Tensor  # [n], the labels
    factor: Tensor  # [n, 1], of the logits
    worst: Tensor  # [n, ...], the point of highest value
    value: Tensor  # [n], the value there
    logits: Tensor  # [n, classes], the logits there

    def part(self, rows: Tensor) -> Climbers:
        """Some of the samples."""
        return Climbers(*rows_of(rows, *self))

    def keep_worst(self, look: Look) -> Climbers:
        """The worst points, after a look; it hands over its points' memory."""
        higher = look.value > self.value
        if look.tied_by_margin:
            closer = margin(look.logits, self.b) > margin(self.logits, self.b)
            higher |= (look.value == self.value) & closer
        return self._replace(
            worst=where_chosen(higher, look.points, self.worst),
            value=torch.where(higher, look.value, self.value),
            logits=torch.where(higher[:, None], look.logits, self.logits),
        )


def where_chosen(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new where a sample is chosen, else old; new may be overwritten."""
    if new.is_cuda:  # without waiting for the device
        return torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), new, old)
    [kept] = torch.where(~chosen)
    if len(kept) == 0:
        return new
    return new.index_copy_(0, kept, old.index_select(0, kept))


def rows_of(index: Tensor, *tensors: Tensor) -> list[Tensor]:
    """``t[index]`` of each: on a CPU index_select copies images five times as fast."""
    return [t.index_select(0, index) for t in tensors]
