"""``attack``: high loss within a ball and a box (slides 7, 10 and 12)."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from lib.attacks._ascent import Function, StepSize, step_sizes
from lib.attacks._climbers import Sweep
from lib.attacks._losses import Loss, cross_entropy
from lib.attacks._search import Search
from lib.balls import L2, Ball, check_ball
from lib.checks import check_counts, check_tensor

# The sweeps of an attack whose step sizes are not given. Chosen on digit models; all lengths fall
# like a cosine from twice the number given here towards 0, in radii: the first steps cross the
# ball, the last ones refine. An ℓ2 step is short in each pixel, so ℓ2 crosses with a longer one.
MAIN_STEPS = 4  # of every sample from its input, along the loss
MAIN_STEPS_L2 = 2
MAIN_LENGTH = 1.0
MAIN_LENGTH_L2 = 5.0
# Then from the worst point so far, half as long, along the loss of twice the logits, in which the
# strongest rival of the own class counts for more. By default only for samples in doubt: those
# with the own class the likeliest, by less than 1 in the scaled logits.
REFINING_STEPS = 7
REFINING_STEPS_L2 = 9
REFINING_LENGTH = 0.5  # of the main one
REFINING_SCALE = 2.0
STEPS_WITH_STEP_SIZE = 10  # where a step size is given and no number


class NoGradientWarning(UserWarning):
    """The model has no gradient at any point that an attack tried for some samples."""


@torch.inference_mode(False)  # a caller may have it on, and autograd is needed
def attack(
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
) -> Tensor:
    """Adversarial inputs ``a + η`` [n, ...] of high loss, η in the ball and a + η in bounds.

    Steepest PGA from η = 0. Every further restart begins at a random point of ball and box,
    drawn with the generator (None: seed 0). Of all points met, the first and the last included,
    each sample keeps the one of highest loss: none ends with a lower loss than it began.

    a: inputs [n, ...] within bounds, in whose units the radius is; b: int64 labels [n].
    steps, if step_size is None:
      None  4 (ℓ2: 2) of every sample, then 7 (9) of those in doubt, see the constants above;
      k     of every sample: below 11 one sweep; else those 4 and 7 (2 and 9), and the rest in a
            third sweep like the second, so that nothing is lost that None finds.
    step_size: a number, or one a step: a single sweep of these, 10 if steps is None.
    loss: cross-entropy sees each sample's logits scaled to one spread, so that a factor of the
    logits changes nothing; another loss sees them as they are. Where the loss has no gradient the
    margin is climbed, and where that has none either a step is random, with a NoGradientWarning
    if that is so at every point. Thorough: ``steps=40``, or 50 for a model that may hide its
    gradient.

    An ℓ2 step ends on the projection on bounds and the ball, or on one at most 0.1 % smaller.
    Raises ValueError for a model in training mode or without a gradient, for inputs outside bounds
    or NaN, for labels that are no classes of the model, and for settings that make no sense.

    >>> import torch
    >>> from lib.attacks import attack
    >>> from lib.balls import LInf
    >>> w = torch.tensor([[2.0, -1.0], [0.0, 0.0]])  # two logits: ⟨(2, −1), a⟩ and 0
    >>> attack(lambda a: a @ w.T, torch.full((1, 2), 0.5), torch.tensor([0]), LInf(0.25)).tolist()
    [[0.25, 0.75]]
    """
    a, b = checked(model, a, b, ball, bounds, restarts, generator)
    sweeps = planned(ball, steps, step_size)
    if len(a) == 0:
        return a.clone()
    search = Search(model, a, b, ball, bounds, loss, generator)
    search.run(sweeps, restarts)
    warn_without_gradient(search.without_gradient(), len(a))
    return search.worst()


def planned(ball: Ball, steps: int | None, step_size: StepSize | None) -> list[Sweep]:
    """The sweeps that ``attack`` documents; ValueError for steps < 1 and bad step sizes."""
    if step_size is not None:
        steps = STEPS_WITH_STEP_SIZE if steps is None else steps
        return [Sweep(step_sizes(step_size, steps), in_radii=False)]
    check_counts(steps=1 if steps is None else steps)
    l2 = isinstance(ball, L2)
    main = MAIN_STEPS_L2 if l2 else MAIN_STEPS
    refining = REFINING_STEPS_L2 if l2 else REFINING_STEPS
    length = MAIN_LENGTH_L2 if l2 else MAIN_LENGTH
    half = length * REFINING_LENGTH
    refined = Sweep(_cosine(half, refining), logit_scale=REFINING_SCALE)
    if steps is None:
        return [Sweep(_cosine(length, main)), refined._replace(in_doubt_only=True)]
    if steps < main + refining:
        return [Sweep(step_sizes(_cosine(length, steps), steps))]
    rest = refined._replace(step_lengths=_cosine(half, steps - main - refining))
    return [Sweep(_cosine(length, main)), refined, *([rest] if rest.step_lengths else [])]


def _cosine(length: float, steps: int) -> list[float]:
    """Lengths of steps that fall from twice the length towards 0."""
    return [length * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


def checked(
    model: Function,
    a: Tensor,
    b: Tensor,
    ball: Ball,
    bounds: tuple[float, float],
    restarts: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs, rounded into bounds, and labels, both without a graph; ValueError with advice."""
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() before an attack")
    check_ball(ball)
    check_tensor("inputs", a)
    check_tensor("labels", b)
    if not a.is_floating_point() or a.dim() < 2:
        raise ValueError(f"inputs must be floats [n, ...], got {a.dtype} {list(a.shape)}")
    if b.dtype != torch.int64 or b.shape != a.shape[:1] or b.device != a.device:
        raise ValueError(
            f"labels must be int64 [{len(a)}] on {a.device}, "
            f"got {b.dtype} {list(b.shape)} on {b.device}"
        )
    low, high = check_bounds(bounds)
    check_counts(restarts=restarts)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")
    ball.radius(a)  # one for all, or one for each sample
    a, b = (t.clone() if t.is_inference() else t.detach() for t in (a, b))
    return _within(a, low, high), b


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds as two numbers; ValueError unless low < high.

    >>> from lib.attacks import check_bounds
    >>> check_bounds((0, 1))
    (0.0, 1.0)
    """
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError, RuntimeError):
        low, high = math.nan, math.nan
    if not low < high:  # NaN fails too
        raise ValueError(f"bounds must be (low, high), two numbers with low < high, got {bounds}")
    return low, high


def _within(a: Tensor, low: float, high: float) -> Tensor:
    """Inputs within bounds: those that a rounding put outside are moved back."""
    least, most = (float(c) for c in a.aminmax()) if len(a) else (low, high)
    if low <= least <= most <= high:
        return a
    scale = max(abs(c) for c in (low, high, 1.0) if math.isfinite(c))
    slack = 32 * torch.finfo(a.dtype).eps * scale
    if not low - slack <= least <= most <= high + slack:  # NaN fails too
        raise ValueError(
            f"inputs must lie in bounds [{low}, {high}], got [{least:.9g}, {most:.9g}]: "
            "scale them (the model normalizes inside), and look for NaN"
        )
    return a.clamp(low, high)


def warn_without_gradient(flat: int, samples: int) -> None:
    """Tell for how many samples an attack had nothing to climb."""
    if flat:
        warnings.warn(
            f"{flat} of {samples} samples stay right, and the model has no gradient at any point "
            "that was tried for them: they were moved at random, so do not take them for robust. "
            "Look for saturated or rounded units, or take more restarts",
            NoGradientWarning,
            stacklevel=3,
        )
