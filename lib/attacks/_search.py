"""The search of an attack: sweeps of steepest proximal gradient ascent (slides 12 and 14).

``Search.climb`` is the loop: evaluate, step, project, and of all points keep each sample's worst.
``_attack`` says which sweeps there are and how long; ``_accuracy`` drops samples on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.attacks._ascent import Function, steepest_step
from lib.attacks._climbers import Climbers, Look, Sweep, where_chosen
from lib.attacks._logits import scale_of
from lib.attacks._losses import Loss, cross_entropy, margin
from lib.balls import Ball, LInf
from lib.checks import check_labels, check_logits, check_losses, in_place_refused
from lib.models import predict

NARROW = (torch.float16, torch.bfloat16)  # where the rounding of a + η leaves the ball


class Search:
    """Sweeps from the inputs a of a batch, and from a random point for each further restart."""

    def __init__(
        self,
        model: Function,
        a: Tensor,
        b: Tensor,
        ball: Ball,
        bounds: tuple[float, float],
        loss: Loss,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.ball, self.bounds, self.loss = model, ball, bounds, loss
        self.generator = generator or torch.Generator().manual_seed(0)
        index = torch.arange(len(a), device=a.device)
        nothing = a.new_full((len(a),), -torch.inf), a.new_full((len(a), 1), torch.nan)
        self.samples = Climbers(index, a, b, a.new_ones(len(a), 1), a, *nothing)
        self.found = self.samples  # with the worst points of all sweeps
        self.flat: Tensor | None = None  # the samples without a gradient at any point so far

    def run(self, sweeps: Sequence[Sweep], restarts: int) -> None:
        """All sweeps from the inputs, and again from random points."""
        for restart in range(restarts):
            if restart and len(self.left().b) == 0:
                break
            climbers, look = self.start_at_random() if restart else self.start()
            for i, sweep in enumerate(sweeps):
                if sweep.in_doubt_only:
                    climbers = climbers.part(in_doubt(climbers))
                if len(climbers.b) == 0:
                    break
                if i:
                    look = self.look(climbers, climbers.worst.clone(), sweep.logit_scale)
                climbers = self.climb(climbers, look, sweep)
                self.finish(climbers)

    def climb(self, climbers: Climbers, look: Look, sweep: Sweep) -> Climbers:
        """The samples still searched, and their worst points, after a sweep that begins at look."""
        project, steps = self.projection(climbers), sweep.steps(self.ball)
        for left, step in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
            rest, look = self.still_searched(climbers, look)
            if len(rest.b) == 0:
                return rest
            if rest is not climbers:
                climbers, project = rest, self.projection(rest)
            gradient, length = self.gradient(climbers, look), step.part(climbers.sample)
            points = project(steepest_step(gradient, length, look.points, *self.bounds))
            climbers = climbers.keep_worst(look)
            look = self.look(climbers, points, sweep.logit_scale, graph=left > 0)
        rest, look = self.still_searched(climbers, look)
        return rest.keep_worst(look)

    def still_searched(self, climbers: Climbers, look: Look) -> tuple[Climbers, Look]:
        """The samples to go on with after a look, here all, and the look at them."""
        return climbers, look

    def finish(self, climbers: Climbers) -> None:
        """Take over what a sweep has found."""
        if self.found is self.samples:  # the first one
            self.found = climbers
            return
        [higher] = torch.where(climbers.value > self.found.value[climbers.sample])
        new = climbers.part(higher)
        for old, better in zip(self.found[-3:], new[-3:], strict=True):
            old.index_copy_(0, new.sample, better)

    def worst(self) -> Tensor:
        """The worst points [n, ...]; the input where the loss, unscaled, is lower there."""
        found, a = self.found, self.samples.a
        if self.loss is not cross_entropy:
            return found.worst
        before = cross_entropy(self.clean_logits, found.b)
        return where_chosen(~(cross_entropy(found.logits, found.b) < before), found.worst, a)

    def without_gradient(self) -> int:
        """How many samples are still right, and had no gradient at any point."""
        if self.flat is None:
            return 0
        return int(self.is_right()[self.flat].sum())

    def is_right(self) -> Tensor:
        """Which samples [n] are right at their worst points."""
        return predict(self.found.logits) == self.found.b

    def start(self) -> tuple[Climbers, Look]:
        """All samples at their inputs; the logits there are checked, and say how to scale them."""
        leaf, logits = self.evaluate(self.samples.a.clone(), graph=True)
        check_labels(self.samples.b, logits)
        self.clean_logits = logits.detach()
        self.samples = self.samples._replace(
            factor=scale_of(self.clean_logits.to(self.samples.a)),
            logits=torch.full_like(self.clean_logits, torch.nan),
        )
        self.found = self.samples
        return self.samples, self.judge(self.samples, leaf, logits)

    def start_at_random(self) -> tuple[Climbers, Look]:
        """What is left to search, at points drawn in the ball and projected on ball and bounds."""
        left = self.left()
        eta = self.ball.part(left.sample).sample(tuple(left.a.shape), self.generator)
        points = self.projection(left)(left.a + eta.to(left.a))
        return left, self.look(left, points)

    def left(self) -> Climbers:
        """The samples that a restart searches: here all."""
        return self.samples

    def look(
        self, climbers: Climbers, points: Tensor, logit_scale: float = 1.0, *, graph: bool = True
    ) -> Look:
        """A look at points; without a graph there is no gradient to ask for."""
        return self.judge(climbers, *self.evaluate(points, graph), logit_scale)

    def evaluate(self, points: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """The points as a leaf of autograd, and the model's logits there, both checked."""
        with torch.set_grad_enabled(graph):
            leaf = points.detach().requires_grad_(graph)
            with in_place_refused("the model", leaf):
                logits = self.model(leaf)
        check_logits(logits, len(leaf))
        return leaf, logits

    def judge(
        self, climbers: Climbers, leaf: Tensor, logits: Tensor, logit_scale: float = 1.0
    ) -> Look:
        """The look at points with these logits: what the next step climbs, and their value.

        Cross-entropy sees scaled logits until a sample is misclassified, then the logits as they
        are. The value is the margin while a sample is right, which is <= 0, and then the loss.
        Another loss sees the logits as they are, and is the value.
        """
        b, own, seen = climbers.b, self.loss is cross_entropy, logits.detach()
        factor = logit_scale * climbers.factor if own else logit_scale
        lead = margin(seen, b)
        right = lead <= 0
        with torch.set_grad_enabled(leaf.requires_grad):
            goal = self.loss(torch.where(right[:, None], factor, 1.0) * logits, b)
        check_losses(goal, b)
        value = goal.detach()
        if own:
            value = torch.where(right, lead, value)
        elif logit_scale != 1:
            value = self.loss(seen, b)
        return Look(leaf.detach(), seen, value, not own, leaf, goal, logit_scale)

    def gradient(self, climbers: Climbers, look: Look) -> Tensor:
        """The goal's gradient; where it is 0 the margin's, and where that is too, one at random."""
        g, none = look.gradient(), climbers.sample[:0]
        total = g.flatten(1).sum(1).abs()  # 0 where g is, and where it is not finite no number
        least, most = total.aminmax()
        if not 0 < float(least) <= float(most) < torch.inf:  # NaN fails too
            [rest] = torch.where(~((total > 0) & (total < torch.inf)))
            g = g.clone()
            none = climbers.sample[self.replace_flat_(g, rest, climbers, look)]
        if self.flat is None:  # the first time, of all that are searched
            self.flat = none
        elif len(self.flat):
            seen = climbers.sample[~torch.isin(climbers.sample, none)]
            self.flat = self.flat[~torch.isin(self.flat, seen)]
        return g

    def replace_flat_(self, g: Tensor, rest: Tensor, climbers: Climbers, look: Look) -> Tensor:
        """Of these rows put the margin's gradient where g is 0; returns where that is 0 too.

        There g becomes random, and the step begins at the worst point so far. A g whose squares
        over- or underflow is kept.
        """
        g[rest] = known = g[rest].nan_to_num(nan=0.0)
        flat = rest[known.flatten(1).abs().amax(1) == 0]
        if len(flat) == 0:
            return flat
        leaf, logits = self.evaluate(look.points[flat], graph=True)
        [lead] = torch.autograd.grad(margin(logits, climbers.b[flat]).sum(), leaf)
        lead = lead.nan_to_num(nan=0.0)
        still = lead.flatten(1).abs().amax(1) == 0
        draw = torch.randn(
            lead[still].shape, generator=self.generator, device=self.generator.device
        )
        lead[still] = draw.to(lead)
        g[flat], flat = lead, flat[still]
        lower = flat[look.value[flat] < climbers.value[flat]]
        look.points[lower] = climbers.worst[lower]
        return flat

    def projection(self, climbers: Climbers) -> Function:
        """``v -> `` the input nearest to v, or nearly so, within bounds and the ball around a."""
        ball, a, (low, high) = self.ball.part(climbers.sample), climbers.a, self.bounds
        if isinstance(ball, LInf):
            eps = ball.radius(a)
            least, most = (a - eps).clamp_(min=low), (a + eps).clamp_(max=high)
            if a.dtype in NARROW:
                exact, wide = ball.radius(a.double()), a.double()
                least = inward(a, (-exact).maximum(low - wide))
                most = inward(a, exact.minimum(high - wide))
            return lambda v: v.clamp_(least, most)
        if a.dtype in NARROW:
            wide = a.float()
            down, up = low - wide, high - wide
            return lambda v: inward(a, ball.project_within(v.float() - wide, down, up))
        down, up = low - a, high - a
        # The sum with a is rounded: the last clamp puts it back within bounds.
        return lambda v: ball.project_within(v.sub_(a), down, up).add_(a).clamp_(low, high)


def inward(a: Tensor, eta: Tensor) -> Tensor:
    """a + η in the narrow type of a, no entry farther from a than the exact η, of a wider type."""
    wide, kind = a.to(eta.dtype), torch.finfo(a.dtype)
    z = (wide + eta).to(a.dtype).to(eta.dtype)
    unit = (kind.eps * z.abs()).clamp(min=kind.eps * kind.tiny)  # one or two steps of the type
    nearer = torch.where(z > wide, (z - unit).maximum(wide), (z + unit).minimum(wide))
    return torch.where((z - wide).abs() > eta.abs(), nearer, z).to(a.dtype)


def in_doubt(climbers: Climbers) -> Tensor:
    """The samples whose own class is the likeliest, by less than 1 in the scaled logits."""
    lead = -margin(climbers.logits * climbers.factor, climbers.b)
    return torch.where((lead >= 0) & (lead < 1))[0]
