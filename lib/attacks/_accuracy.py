"""Robust accuracy: the samples that stay right at every point of an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.attacks._ascent import Function, StepSize
from lib.attacks._attack import checked, planned, warn_without_gradient
from lib.attacks._climbers import Climbers, Look
from lib.attacks._losses import Loss, cross_entropy
from lib.attacks._search import Search
from lib.balls import Ball
from lib.checks import check_counts, check_tensor
from lib.models import predict


def robust_accuracy(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int | None = None,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 500,
    progress: bool = False,
) -> float:
    """The share of samples, in [0, 1], that stay correctly classified at every point of an attack.

    The mean of ``right_under_attack``, which says what the arguments are. No attack finds every
    adversarial example: this bounds the true robust accuracy from above.
    Raises ValueError as ``attack`` does, and for an empty batch, which has no accuracy.

    >>> import torch
    >>> from lib.attacks import robust_accuracy
    >>> from lib.balls import LInf
    >>> a, b = torch.tensor([[0.2], [0.4], [0.9]]), torch.tensor([0, 0, 1])
    >>> round(robust_accuracy(lambda a: a - 0.5, a, b, LInf(0.2)), 3)  # one logit: 0.4 is too near
    0.667
    """
    check_tensor("inputs", a)
    if len(a) == 0:
        raise ValueError("a needs samples, as none has no accuracy: got an empty batch")
    right = right_under_attack(
        model,
        a,
        b,
        ball,
        steps,
        step_size,
        restarts,
        bounds,
        generator,
        loss=loss,
        batch_size=batch_size,
        progress=progress,
    )
    return int(right.sum()) / len(right)


@torch.inference_mode(False)
def right_under_attack(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    steps: int | None = None,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 500,
    progress: bool = False,
) -> Tensor:
    """Which samples stay correctly classified at every point of an attack: bool [n].

    model, a, b, ball, steps, step_size, restarts, bounds, generator, loss: those of ``attack``.
    A sample leaves the search at the first point that is misclassified, its clean input included,
    so that weak models are judged quickly. Logits with a NaN are no class, and count as wrong.
    batch_size: samples at a time; progress: show a bar.
    Raises ValueError as ``attack`` does.

    >>> import torch
    >>> from lib.attacks import right_under_attack
    >>> from lib.balls import LInf
    >>> a, b = torch.tensor([[0.2], [0.4], [0.9]]), torch.tensor([0, 0, 1])
    >>> right_under_attack(lambda a: a - 0.5, a, b, LInf(0.2)).tolist()  # one logit
    [True, False, True]
    """
    a, b = checked(model, a, b, ball, bounds, restarts, generator)
    sweeps = planned(ball, steps, step_size)
    check_counts(batch_size=batch_size)
    generator = generator or torch.Generator().manual_seed(0)
    index = torch.arange(len(a), device=a.device)
    batches = list(zip(*(t.split(batch_size) for t in (a, b, index)), strict=True))
    if progress:
        from tqdm import tqdm

        batches = tqdm(batches, desc="robust accuracy", unit="batch")
    right, flat = torch.zeros_like(b, dtype=torch.bool), 0
    for some, labels, i in batches if len(a) else ():
        search = SearchUntilFooled(model, some, labels, ball.part(i), bounds, loss, generator)
        search.run(sweeps, restarts)
        right[i] = search.right
        flat += search.without_gradient()
    warn_without_gradient(flat, len(a))
    return right


class SearchUntilFooled(Search):
    """A search that a sample leaves at the first point that is misclassified."""

    right: Tensor  # bool [n]: not misclassified so far

    def start(self) -> tuple[Climbers, Look]:
        self.right = torch.ones_like(self.samples.b, dtype=torch.bool)
        return super().start()

    def left(self) -> Climbers:
        return self.samples.part(torch.where(self.right)[0])

    def still_searched(self, climbers: Climbers, look: Look) -> tuple[Climbers, Look]:
        right = predict(look.logits) == climbers.b
        if right.all():
            return climbers, look
        self.right[climbers.sample[~right]] = False
        [rest] = torch.where(right)
        climbers = climbers.part(rest)
        if look.leaf.requires_grad and 0 < 2 * len(rest) < len(right):
            # A pass back costs one forward: for a few, both anew are cheaper than back through all.
            points = look.points.index_select(0, rest)
            return climbers, self.look(climbers, points, look.logit_scale)
        return climbers, look.part(rest)

    def finish(self, climbers: Climbers) -> None:
        pass

    def is_right(self) -> Tensor:
        return self.right
