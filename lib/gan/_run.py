"""A long run of slide 40's rounds: checked, scored, kept at a checkpoint, stopped if it diverges.

The rounds are ``_steps.training_round``; all around them that a GAN shares with other long runs is
``lib.runs.session``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.checks import check_counts, check_function
from lib.gan._checks import (
    OptimizerOf,
    check_networks,
    check_noise,
    check_optimizer,
    check_samples,
    optimizer_of,
)
from lib.gan._networks import Noise
from lib.gan._settings import ScheduleOf
from lib.gan._steps import Objective, training_round
from lib.runs import processes
from lib.runs.session import Session, require_at_most, require_finite, torch_seeded
from lib.transport import wasserstein

History = dict[str, list[Any]]

# The momenta of Gulrajani et al. (2017); fused is one pass over the weights instead of ten.
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9), fused=True)


@dataclass(eq=False)
class _State:
    """How far a run is, and its history."""

    settings: ClassVar[Mapping[str, Any]] = {}  # a run may go on with more steps
    steps: int
    done: int = 0  # generator steps
    value: list[float] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    w1: list[float] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def history(self) -> History:
        return {name: getattr(self, name) for name in ("value", "step", "w1", "samples")}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, **self.history()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_at_most(self.steps, state["done"], "step")
        vars(self).update(state)


class Run:
    """A generator and a critic that are about to be trained, on the session's device.

    The arguments are those of ``train_wgan``, networks and optimizers by their names "generator"
    and "critic". logits: whether a critic that ends in a sigmoid is refused. prepare: changes the
    networks before the optimizers are made. Raises ValueError for what does not fit, before
    anything of the caller's changed but the networks' device.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        real: Tensor,
        noise: Noise,
        optimizers: Mapping[str, OptimizerOf | None],
        *,
        steps: int,
        critic_steps: int,
        batch_size: int,
        logits: bool = False,
        prepare: Callable[[], Any] | None = None,
        evaluate_every: int | None = None,
        samples: int = 500,
        target: Tensor | None = None,
        schedule: ScheduleOf | None = None,
        seed: int = 0,
        **session: Any,
    ) -> None:
        check_counts(steps=steps, critic_steps=critic_steps, batch_size=batch_size, samples=samples)
        check_counts(0, evaluate_every=evaluate_every or 0)
        processes.require_divisible(batch_size=batch_size)
        check_samples("real", real)
        check_function("noise", noise, "lib.gan.gaussian(2)")
        if target is not None:
            check_samples("target", target, like=real)
        self.session = Session(networks, seed=seed, **session)
        self.noise, self.real = noise, real.detach().to(self.session.device)
        for name, network in networks.items():
            check_optimizer(optimizers[name] or ADAM, name, network)
        self.draws = torch.Generator().manual_seed(seed)
        with torch_seeded(seed, self.session.device):  # where a noise draws from torch's own
            self.scored_noise = check_noise(noise(samples, generator=self.draws), samples)
            check_networks(networks, self.in_precision, self.real, self.scored_noise, logits)
        if prepare:
            prepare()
        self.optimizers = {
            name: optimizer_of(optimizers[name] or ADAM, name, network)
            for name, network in networks.items()
        }
        self.schedules = [schedule(o) for o in self.optimizers.values()] if schedule else []
        if target is None:
            chosen = torch.randperm(len(real), generator=self.draws)[:samples]
            target = real[chosen.to(real.device)]
        self.target = target.detach().cpu()
        self.critic_steps, self.batch_size = critic_steps, batch_size
        self.score_every = -(-steps // 10) if evaluate_every is None else evaluate_every
        self.state = _State(steps)
        self.settings: dict[str, Any] = {"critic_steps": critic_steps, "batch_size": batch_size}
        self.settings |= {"evaluate_every": evaluate_every, "samples": samples}

    def train(self, objective: Objective, rule: Mapping[str, Any]) -> History:
        """Slide 40's rounds, until all are done. rule: the objective's name and numbers."""
        session, state = self.session, self.state
        generator, critic = (self.in_precision(session.compiled[n]) for n in session.networks)
        if objective.penalty:
            objective = replace(objective, penalty=self.in_precision(objective.penalty))
        draws = self._draw_noise, self._draw_real
        optimizers = self.optimizers["generator"], self.optimizers["critic"]
        with (
            session.resumed(*self._kept(rule), {"draws": self.draws}) as checkpoint,
            session.bar(state.steps, state.done) as bar,
            self._averaged_gradients(),
        ):
            while state.done < state.steps:
                if self.score_every and state.done % self.score_every == 0:
                    bar.set_postfix(w1=f"{self._score():.3f}", refresh=False)
                with session.step(f"step {state.done + 1}"):
                    numbers = training_round(
                        objective, generator, critic, *draws, *optimizers, self.critic_steps
                    )
                    value, loss = _means(numbers)
                    require_finite(**{"critic's value": value, "generator's loss": loss})
                for schedule in self.schedules:
                    schedule.step()
                state.value.append(value)
                state.done += 1
                bar.update()
                checkpoint.save_if_due()
            if self.score_every:
                self._score()
            checkpoint.save()
        return state.history()

    def in_precision(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function under the session's autocast, its result in the type of the real samples."""
        if self.session.settings["precision"] == "float32":
            return function

        def in_precision(*inputs: Tensor) -> Tensor:
            with self.session.autocast:
                return function(*inputs).to(self.real.dtype)

        return in_precision

    def _kept(self, rule: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint holds, and what must be the same when the run goes on."""
        objects: dict[str, Any] = {"run": self.state}
        for i, (name, optimizer) in enumerate(self.optimizers.items()):
            objects[f"{name}'s optimizer"] = optimizer
            objects[f"{name}'s schedule"] = self.schedules[i] if self.schedules else None
        settings = {**rule, **self.settings, "real": self.real, "target": self.target}
        settings |= {"noise": self.noise, "noise's first draw": self.scored_noise}
        return objects, settings

    def _draw_noise(self) -> Tensor:
        omega = self.noise(self.batch_size, generator=self.draws)
        omega = check_noise(omega, self.batch_size, like=self.scored_noise)
        return processes.local_rows(omega).to(self.session.device, copy=True)

    def _draw_real(self) -> Tensor:
        i = torch.randint(len(self.real), (self.batch_size,), generator=self.draws)
        return self.real[processes.local_rows(i).to(self.session.device)]

    @torch.no_grad()
    def _score(self) -> float:
        """The exact W1 of the generator's samples to the target, noted once a step."""
        state, generator = self.state, self.session.networks["generator"]
        if state.step[-1:] != [state.done]:
            generator.eval()
            samples = generator(self.scored_noise.to(self.session.device, copy=True))
            samples = samples.to("cpu", copy=True)
            generator.train()
            if not torch.isfinite(samples).all():
                raise FloatingPointError(
                    f"the generator makes NaN or infinity in evaluation mode after {state.done} "
                    "steps: try smaller learning rates, or check its buffers"
                )
            state.step.append(state.done)
            state.samples.append(samples)
            state.w1.append(wasserstein(samples.flatten(1), self.target.flatten(1)))
        return state.w1[-1]

    @contextmanager
    def _averaged_gradients(self) -> Iterator[None]:
        """Before each optimizer's step its gradients become their mean over the processes."""

        def average(optimizer: Optimizer, *_: Any) -> None:
            held = (p for group in optimizer.param_groups for p in group["params"])
            processes.mean_([p.grad for p in held if p.grad is not None])

        several = processes.world_size() > 1
        hooks = [o.register_step_pre_hook(average) for o in self.optimizers.values() if several]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _means(numbers: tuple[Tensor, ...]) -> list[float]:
    """Numbers, as their means over the processes."""
    together = torch.stack([*numbers]).double()
    processes.mean_([together])
    return together.tolist()
