"""How each class fares, clean or under attack (slide 25)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.attacks import Function, Loss, StepSize, right_under_attack
from lib.balls import Ball
from lib.checks import check_counts, check_logits
from lib.data import Images, check_images
from lib.models import predict


@dataclass(frozen=True, eq=False)
class ClasswiseAccuracy:
    """How many samples of each class a model gets right (slide 25).

    right, count: int64 [C]; classes: the C names; confidence: of the intervals, in (0, 1)
    """

    classes: tuple[str, ...]
    right: Tensor
    count: Tensor
    confidence: float = 0.95

    @property
    def accuracy(self) -> Tensor:
        """``right / count`` [C], float64, in [0, 1]."""
        return self.right.double() / self.count

    @property
    def interval(self) -> Tensor:
        """[C, 2]: each class's lower and upper end, by Clopper and Pearson (1934).

        It holds the class's true accuracy with at least the given confidence, each class taken
        alone; for all C at once take 1 − (1 − confidence) / C.
        """
        from scipy.stats import binomtest

        pairs = zip(self.right.tolist(), self.count.tolist(), strict=True)
        ends = [binomtest(*pair).proportion_ci(self.confidence, "exact") for pair in pairs]
        return torch.tensor([[end.low, end.high] for end in ends], dtype=torch.float64)

    @property
    def average(self) -> float:
        """The accuracy over all samples."""
        return int(self.right.sum()) / int(self.count.sum())

    @property
    def worst(self) -> float:
        """The accuracy of the class with the lowest."""
        return float(self.accuracy.min())

    @property
    def gap(self) -> float:
        """The highest accuracy of a class minus the lowest."""
        return float(self.accuracy.max()) - self.worst


def classwise_accuracy(
    model: Function,
    data: Images,
    ball: Ball | None = None,
    steps: int | None = None,
    step_size: StepSize | None = None,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    *,
    loss: Loss | None = None,
    confidence: float = 0.95,
    batch_size: int = 500,
) -> ClasswiseAccuracy:
    """The accuracy of each class: clean (ball None), or robust under an attack (slide 25).

    ball, steps, step_size, restarts, bounds, generator, loss: those of
    ``attacks.right_under_attack``, which counts a sample as right when no point of the attack is
    misclassified; loss None is its default. The model must be in evaluation mode.
    confidence: of the intervals, in (0, 1); batch_size: samples at a time.
    Raises ValueError for data that are no Images, for a class without a sample, which has no
    accuracy, for attack settings without a ball, and as ``attacks.right_under_attack`` does.

    >>> import torch
    >>> from lib.data import Images
    >>> from lib.fairness import classwise_accuracy
    >>> a = torch.tensor([0.1, 0.7, 0.8, 0.9]).reshape(4, 1, 1, 1)
    >>> data = Images(a, torch.tensor([0, 0, 1, 1]), ("dark", "bright"))
    >>> classwise_accuracy(lambda a: a.flatten(1) - 0.5, data).accuracy.tolist()  # one logit
    [0.5, 1.0]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    check_images(data)
    check_counts(batch_size=batch_size)
    given = {"steps": steps, "step_size": step_size, "generator": generator, "loss": loss}
    settings: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
    settings |= {"restarts": restarts} if restarts != 1 else {}
    settings |= {"bounds": bounds} if tuple(bounds) != (0.0, 1.0) else {}
    if ball is None and settings:
        raise ValueError(f"{', '.join(settings)} are an attack's: give its ball too")
    if isinstance(model, torch.nn.Module) and any(part.training for part in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() first")
    count = data.b.cpu().bincount(minlength=len(data.classes))
    if not count.all():
        empty = data.classes[int(count.argmin())]
        raise ValueError(f"class {empty!r} has no sample: choose data that hold every class")

    if ball is None:
        right = _right(model, data.a, data.b, batch_size)
    else:
        right = right_under_attack(model, data.a, data.b, ball, batch_size=batch_size, **settings)
    of_class = data.b[right].cpu().bincount(minlength=len(count))
    return ClasswiseAccuracy(data.classes, of_class, count, confidence)


@torch.no_grad()
def _right(model: Function, a: Tensor, b: Tensor, batch_size: int) -> Tensor:
    """Which samples [n] a model gets right; it may overwrite the copies that it is given."""
    right = []
    for x, y in zip(a.split(batch_size), b.split(batch_size), strict=True):
        logits = model(x.clone())
        check_logits(logits, len(y))
        right.append(predict(logits) == y)
    return torch.cat(right)
