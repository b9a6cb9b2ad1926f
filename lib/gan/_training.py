"""The training of slide 40, as corrected, for any game of a generator against a critic.

For each of T steps: M steps of ascent on the critic, then one of descent on the generator,

    ``y ← y + γ ∇_y [V_y − charge]``, then enforce the constraint on y;      ``x ← x − α ∇_x ℓ``

each on samples drawn anew. Unlike on the slide the critic is initialized once, and goes on from
where it was. lib.gan says what V, the charge, the constraint and ℓ are. A run that is killed goes
on from its checkpoint, and its history holds samples and their exact distance to the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.gan._networks import Noise
from lib.runs import CheckpointError, processes
from lib.runs.checkpoints import Checkpoint
from lib.runs.fingerprints import checksum
from lib.runs.session import torch_seeded
from lib.transport import wasserstein

History = dict[str, list]
OptimizerOf = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer]

# The momenta of Gulrajani et al. (2017); fused is one pass over the weights instead of ten.
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9), fused=True)


@dataclass(frozen=True)
class Game:
    """What is played for, as functions of the critic's numbers on real and on fake samples."""

    value: Callable[[Tensor, Tensor], Tensor]  # V, which the critic maximizes
    loss: Callable[[Tensor], Tensor]  # ℓ, which the generator minimizes, of the fakes' alone
    charge: Callable[[Tensor, Tensor], Tensor] | None = None  # of real and fake samples
    enforce: Callable[[], None] | None = None
    rule: Mapping[str, Any] = field(default_factory=dict)  # its name and numbers, for checkpoints


def play(
    game: Game,
    generator: nn.Module,
    critic: nn.Module,
    real: Tensor,
    noise: Noise,
    *,
    steps: int,
    critic_steps: int,
    batch_size: int = 128,
    generator_optimizer: OptimizerOf | None = None,
    critic_optimizer: OptimizerOf | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    evaluate_every: int | None = None,
    samples: int = 500,
    target: Tensor | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    every: float = 60.0,
    device: str | torch.device | None = None,
    precision: str = "float32",
    compile: bool = False,
    progress: bool | None = None,
) -> History:
    """``steps`` (T) steps of the generator, before each ``critic_steps`` (M) of the critic.

    generator: noise [n, ...] -> samples [n, ...]. critic: samples -> [n] or [n, 1], each for
    itself: real and fake ones come in one batch. real: [N, ...], samples of the target, from
    which batches are drawn with replacement. noise: (n, generator=None) -> [n, ...], on the CPU.
    batch_size: K and B, of each kind. generator_optimizer, critic_optimizer: parameters ->
    optimizer, or an optimizer that has them already; None: Adam with lr 1e-3. schedule: optimizer
    -> learning rate schedule, of both of them, stepped after each generator step.

    evaluate_every: generator steps between two scores, of which the first is before and the last
    after the training; None: at most ten and the first, 0: none. samples: the size of the sample
    that is scored, always from the same noise. target: [m, ...], what it is compared with; None:
    as many of real, chosen once.
    seed: of every draw; all but the points of a penalty are the same on every device.
    checkpoint, every, device, precision and progress: as in ``lib.training.fit``. compile: run both
    networks through ``torch.compile``, though not for a charge, as it has no second derivatives.
    Under torchrun each process takes its share of every batch (lib.runs.processes).

    Returns the history: "value" [steps], V on the critic's last batch before each generator
    step; and for each score "step", the generator steps done, "samples", a tensor, and "w1", the
    exact W1 between them and the target, both flattened. Both networks end in evaluation mode.

    Raises ValueError for settings out of range and shapes that do not fit; CheckpointError for a
    checkpoint that is damaged or of another run; and FloatingPointError as soon as V or ℓ is not
    finite: the checkpoint, if any, remains that of an earlier step.
    """
    sizes = {"steps": steps, "critic_steps": critic_steps, "batch_size": batch_size}
    for name, size in (sizes | {"samples": samples, "real samples": len(real)}).items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}")
    processes.require_divisible(batch_size=batch_size)
    for name, seconds in (("every", every), ("evaluate_every", evaluate_every or 0)):
        if not seconds >= 0:
            raise ValueError(f"{name} must be >= 0, got {seconds}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision must be "float32" or "bfloat16", got {precision!r}')
    if not torch.isfinite(real).all():
        raise ValueError("real must be finite, got NaN or infinity")
    from tqdm import tqdm

    generator.to(device).train(), critic.to(device).train()
    x, y = list(generator.parameters()), list(critic.parameters())
    device = y[0].device
    dual, primal = _optimizer(critic_optimizer, y), _optimizer(generator_optimizer, x)
    schedules = [schedule(optimizer) for optimizer in (dual, primal)] if schedule else [None, None]
    h, d = (torch.compile(player) if compile else player for player in (generator, critic))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    draws = torch.Generator().manual_seed(seed)
    scored_noise = noise(samples, generator=draws).to(device)
    if target is None:
        target = real[torch.randperm(len(real), generator=draws)[:samples].to(real.device)]
    run = _Run(steps)
    parts = {"run": run, "generator": generator, "critic": critic}
    parts |= {"generator's optimizer": primal, "critic's optimizer": dual}
    parts |= {"critic's schedule": schedules[0], "generator's schedule": schedules[1]}
    settings = {**game.rule, "critic_steps": critic_steps, "batch_size": batch_size, "seed": seed}
    settings |= {"evaluate_every": evaluate_every, "samples": samples, "precision": precision}
    settings |= {"compile": compile, "device": device.type}
    settings["CRC-32"] = checksum(real, target) if checkpoint else None
    if evaluate_every is None:
        evaluate_every = -(-steps // 10)
    real = real.to(device)
    bar = tqdm(total=steps, unit="step", disable=None if progress is None else not progress)

    def fresh_noise() -> Tensor:
        return processes.local_rows(noise(batch_size, generator=draws)).to(device)

    def score() -> None:
        generator.eval()
        with torch.no_grad():
            run.score(generator(scored_noise).cpu(), target)
        generator.train()
        bar.set_postfix(w1=f"{run.w1[-1]:.3f}", refresh=False)

    try:
        with bar, torch_seeded(seed, device) as of_torch:
            keeper = Checkpoint(
                checkpoint, parts, {"draws": draws, **of_torch}, settings, every=every
            )
            keeper.resume_or_create()
            bar.update(run.done)
            while run.done < steps:
                if evaluate_every and run.done % evaluate_every == 0:
                    score()
                for _ in range(critic_steps):
                    with torch.no_grad(), autocast:
                        fake = h(fresh_noise()).to(real.dtype)
                    i = torch.randint(len(real), (batch_size,), generator=draws)
                    r = real[processes.local_rows(i).to(device)]
                    with autocast:
                        of_real, of_fake = _numbers(d, r, fake)
                        value = game.value(of_real, of_fake)
                        loss = game.charge(r, fake) - value if game.charge else -value
                    _step(dual, loss, y)  # y ← y + γ ∇[V − charge]
                    if game.enforce:
                        game.enforce()
                with autocast:
                    loss = game.loss(d(h(fresh_noise())))
                _step(primal, loss, x)  # x ← x − α ∇ℓ
                for lr in schedules if schedule else ():
                    lr.step()
                numbers = torch.stack([value.detach(), loss.detach()]).double()
                processes.mean_([numbers])
                run.end_step(*numbers.tolist())
                bar.update()
                keeper.save_if_due()
            if evaluate_every:
                score()
            keeper.save()
    finally:
        generator.eval(), critic.eval()
    return run.history()


def _optimizer(of: OptimizerOf | None, parameters: list[nn.Parameter]) -> Optimizer:
    return of if isinstance(of, Optimizer) else (of or ADAM)(parameters)


def _numbers(critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's numbers on both, in one pass: it is wider, and so quicker, than two."""
    if real.shape != fake.shape:
        raise ValueError(f"the generator makes {list(fake.shape)}, real are {list(real.shape)}")
    numbers = critic(torch.cat([real, fake]))
    if numbers.numel() != 2 * len(real):
        raise ValueError(
            f"the critic must return one number a sample, got {list(numbers.shape)} for "
            f"{2 * len(real)} samples"
        )
    return numbers[: len(real)], numbers[len(real) :]


def _step(optimizer: Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """One step down the loss, by the gradient of these parameters alone."""
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    processes.mean_([p.grad for p in parameters])
    optimizer.step()


@dataclass(eq=False)
class _Run:
    """How far a run is, and its history."""

    settings = {}  # noqa: RUF012  # more steps may be asked of it

    steps: int
    done: int = 0  # generator steps
    value: list[float] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    w1: list[float] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def score(self, samples: Tensor, target: Tensor) -> None:
        if self.step[-1:] != [self.done]:
            self.step.append(self.done)
            self.samples.append(samples)
            self.w1.append(wasserstein(samples.flatten(1), target.flatten(1)))

    def end_step(self, value: float, loss: float) -> None:
        if not math.isfinite(value + loss):
            raise FloatingPointError(
                f"the critic's value is {value} and the generator's loss {loss} in step "
                f"{self.done + 1}: try smaller learning rates, or check the data"
            )
        self.value.append(value)
        self.done += 1

    def history(self) -> History:
        return {name: getattr(self, name) for name in ("value", "step", "w1", "samples")}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, **self.history()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["done"] > self.steps:
            raise CheckpointError(
                f"the checkpoint is {state['done']} steps far, more than steps={self.steps}: ask "
                "for more steps, or give another path"
            )
        vars(self).update(state)
