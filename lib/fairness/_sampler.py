"""The bandit that chooses which classes to train on (slide 26)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lib.attacks import Loss
from lib.checks import check_counts, check_floats, check_number, check_tensor, checked_by
from lib.models import predict
from lib.runs import processes


def _check_batch(
    w: Tensor, classes: Tensor, losses: Tensor, gamma: float, step_size: float
) -> None:
    check_tensor("classes", classes)
    check_tensor("losses", losses)
    check_floats("w", w)
    if w.dim() != 1 or len(w) == 0:
        raise ValueError(f"w must be [C], one weight a class, got {list(w.shape)}")
    _check_settings(gamma, step_size)
    if classes.dtype != torch.int64 or classes.dim() != 1 or losses.shape != classes.shape:
        raise ValueError(
            "needs classes, int64 [m], and one loss for each, got "
            f"{classes.dtype} {list(classes.shape)} and {list(losses.shape)}"
        )
    unknown = classes[(classes < 0) | (classes >= len(w))]
    if len(unknown):
        raise ValueError(f"classes must be 0 to {len(w) - 1}, got {unknown.tolist()}")
    if not torch.isfinite(losses).all():
        raise ValueError("a loss is not finite: look for NaN in the losses")


def _check_settings(gamma: float, step_size: float) -> None:
    if isinstance(gamma, str) or not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    check_number("step_size", step_size, positive=True)


@checked_by(_check_batch)
def class_focused_step(
    w: Tensor, classes: Tensor, losses: Tensor, gamma: float, step_size: float
) -> Tensor:
    """The bandit's weights after a batch (slide 26, alg-cfol; Auer et al., 2002).

    ``q = softmax(w)``, ``p = gamma / C + (1 − gamma) q``, and for every class c of the batch
    ``w_c + step_size · Σ loss / p_c``, the sum over the batch's samples of class c.

    w: [C]; classes: int64 [m], drawn from p; losses: [m], for thm-regret in [0, 1]. The quotient
    makes the sum unbiased: its mean for class c is m times the mean loss of class c, however
    rarely the class is drawn. Returns new weights [C].
    Raises ValueError for other shapes or types, classes that are not 0 to C − 1, settings out of
    range, and weights or losses that are not finite.

    >>> import torch
    >>> from lib.fairness import class_focused_step
    >>> w, losses = torch.zeros(2), torch.tensor([1.0, 0.5])
    >>> class_focused_step(w, torch.tensor([0, 0]), losses, gamma=0.5, step_size=0.1).tolist()
    [0.30000001192092896, 0.0]
    """
    q = w.softmax(0)
    p = gamma / len(w) + (1 - gamma) * q
    return w.index_add(0, classes, step_size * losses / p[classes])


class ClassFocusedSampler:
    """Exp3 on the classes: it draws the samples to train on and learns from their losses.

    With weights w_c, all 0 at the start (slide 26, alg-cfol; Auer et al., 2002)::

        q = softmax(w)                              .q, the distribution on the simplex
        p = gamma / C + (1 − gamma) q               .p, what classes are drawn from
        w_c ← w_c + step_size · Σ loss / p_c        .update, over the batch's samples of class c

    The step is ``class_focused_step``'s.

    labels: int64 [n], the class of each training sample, 0 to C − 1.
    gamma: the share of uniform draws, in [0, 1]; no class is drawn more rarely than gamma / C.
    step_size: > 0; losses are summed, so halve it when the batch doubles.
    generator: of the draws (None: seed 0); it, w, q and p (float64) are on the CPU.
    Raises ValueError for a class without a sample and for settings out of range.

    >>> import torch
    >>> from lib.fairness import ClassFocusedSampler
    >>> sampler = ClassFocusedSampler(torch.tensor([0, 0, 0, 1]), gamma=0.5, step_size=0.1)
    >>> sampler.update([1], [1.0])  # class 1 was wrong: w = (0, 0.1 / 0.5)
    >>> [round(q, 2) for q in sampler.q.tolist()]
    [0.45, 0.55]
    """

    def __init__(
        self,
        labels: Tensor,
        gamma: float = 0.5,
        step_size: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        labels = torch.as_tensor(labels).cpu()
        if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) == 0:
            raise ValueError(
                f"labels must be int64 [n], n >= 1, got {labels.dtype} {list(labels.shape)}"
            )
        if labels.min() < 0:
            raise ValueError(f"labels must be >= 0, got {int(labels.min())}")
        self._count = labels.bincount()
        if not self._count.all():
            raise ValueError(
                f"class {int(self._count.argmin())} of {len(self._count)} has no sample: "
                "number the classes 0, 1, ... without a hole"
            )
        _check_settings(gamma, step_size)
        self.gamma, self.step_size = gamma, step_size
        self.w = torch.zeros(len(self._count), dtype=torch.float64)
        self._generator = generator or torch.Generator().manual_seed(0)
        # The samples of class c stand at _order[_start[c] : _start[c] + _count[c]].
        self._order = labels.argsort(stable=True)
        self._start = self._count.cumsum(0) - self._count

    @property
    def q(self) -> Tensor:
        """``softmax(w)`` [C]: the bandit's distribution on the classes."""
        return self.w.softmax(0)

    @property
    def p(self) -> Tensor:
        """``gamma / C + (1 − gamma) q`` [C]: the distribution that classes are drawn from."""
        return self.gamma / len(self.w) + (1 - self.gamma) * self.q

    def draw(self, n: int) -> Tensor:
        """Indices [n] of samples: n times a class from p, then one of its samples, uniformly."""
        check_counts(n=n)
        c = torch.multinomial(self.p, n, replacement=True, generator=self._generator)
        u = torch.rand(n, dtype=torch.float64, generator=self._generator)
        return self._order[self._start[c] + (u * self._count[c]).long()]

    def update(self, classes: Tensor | Sequence[int], losses: Tensor | Sequence[float]) -> None:
        """``w_c += step_size · Σ loss / p_c`` over the batch, with p from before it.

        classes: int64 [m], of samples drawn from p; losses: [m], finite.
        Raises ValueError for anything else, and then changes nothing.
        """
        classes = torch.as_tensor(classes).cpu()
        losses = torch.as_tensor(losses, dtype=torch.float64, device="cpu").detach()
        w = class_focused_step(self.w, classes, losses, self.gamma, self.step_size)
        if not torch.isfinite(w).all():
            raise ValueError(
                "a loss is not finite, or its class has probability 0: look for NaN in the "
                "losses, and take gamma > 0"
            )
        self.w = w

    def watch(self, loss: Loss) -> Loss:
        """The same loss, which also feeds the 0-1 losses of the batch that it sees to update.

        For the loss of a training update, called once a batch, and not for that of an attack.
        """

        def watched(logits: Tensor, b: Tensor) -> Tensor:
            wrong = predict(logits) != b
            self.update(processes.all_rows(b), processes.all_rows(wrong))
            return loss(logits, b)

        return watched

    def state_dict(self) -> dict[str, Tensor]:
        """The weights w and the generator's state; plain tensors, safe with weights_only."""
        return {"w": self.w.clone(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where state_dict was taken. Raises ValueError for a state that does not fit."""
        if set(state) != {"w", "generator"}:
            raise ValueError(f'state must hold "w" and "generator", got {sorted(state)}')
        w = state["w"]
        if w.shape != self.w.shape or w.dtype != torch.float64 or not torch.isfinite(w).all():
            raise ValueError(
                f"w must be finite, float64 {list(self.w.shape)}, got {w.dtype} {list(w.shape)}: "
                "is the state that of another data set?"
            )
        self._generator.set_state(state["generator"].cpu())
        self.w = w.detach().cpu().clone()
