"""A session: what every long run does around its steps (slides 23 and 40).

A loop says what a step is; the session moves the networks to the device, chooses the precision,
seeds torch, compiles, shows a bar, goes on from a checkpoint, and stops a run that diverges::

    session = Session({"model": model}, seed=seed, device=device, checkpoint=path)
    optimizer = torch.optim.Adam(model.parameters())     # on the device by now
    state = State()                                      # has .done, state_dict, load_state_dict
    objects = {"run": state, "optimizer": optimizer}     # kept, besides the networks
    with session.resumed(objects, {"update": update}), session.bar(steps, state.done) as bar:
        while state.done < steps:
            with session.step(f"step {state.done + 1}"):
                with session.autocast:
                    loss = update(session.compiled["model"], *minibatch())
                require_finite(loss=loss)                # before the step is taken
                optimizer.step()
            state.done += 1
            bar.update()
            session.checkpoint.save_if_due()
        session.checkpoint.save()

A step in which a number or a weight is not finite does not count: the weights of all networks are
those before it, the checkpoint is that of an earlier step, and the message says what to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lib.runs.checkpoints import Checkpoint, CheckpointError

PRECISIONS = ("float32", "bfloat16")


class Session:
    """Networks that are trained together, and how.

    networks: by name; they are moved to the device, and stay there. seed: of torch's global
    generators, which the caller finds as they were. device: None is where the first network is.
    precision: "float32", or "bfloat16" by ``autocast``. channels_last: the memory layout of
    kernels. compile: ``compiled`` holds ``torch.compile(network)``; else the networks.
    checkpoint: a file to go on from if it is there, or None. every: seconds between two saves.
    progress: show a bar; None shows one on a terminal only.
    Raises ValueError for settings out of range, before anything changes.

    >>> session = Session({"model": nn.Linear(2, 1)}, seed=3)
    >>> session.device, list(session.compiled)
    (device(type='cpu'), ['model'])
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str = "float32",
        channels_last: bool = False,
        compile: bool = False,
        checkpoint: str | Path | None = None,
        every: float = 60.0,
        progress: bool | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f'precision must be "float32" or "bfloat16", got {precision!r}')
        if not every >= 0:
            raise ValueError(f"every must be >= 0 seconds, got {every}")
        for name, network in networks.items():
            if not any(p.requires_grad for p in network.parameters()):
                raise ValueError(
                    f"the {name} has no parameters to train: give it some, or unfreeze them by "
                    "requires_grad_()"
                )
        first = next(iter(networks.values()))
        device = device or next(first.parameters()).device
        for network in networks.values():
            network.to(device, memory_format=torch.channels_last if channels_last else None)
        self.networks, self.seed, self.progress = dict(networks), seed, progress
        self.device = next(first.parameters()).device
        self.autocast: AbstractContextManager[Any] = nullcontext()
        if precision == "bfloat16" or torch.amp.is_autocast_available(self.device.type):
            self.autocast = torch.autocast(
                self.device.type, torch.bfloat16, enabled=precision == "bfloat16"
            )
        self.compiled = self.networks
        if compile:  # a last minibatch that is shorter is compiled again
            self.compiled = {k: torch.compile(n, dynamic=False) for k, n in networks.items()}
        self.path, self.every = checkpoint, every
        self.settings = {"seed": seed, "precision": precision, "compile": compile}
        self.settings["channels_last"] = channels_last
        self.optimizers: list[Optimizer] = []
        self.checkpoint = Checkpoint(None, {}, {}, {})

    @contextmanager
    def resumed(
        self,
        objects: Mapping[str, Any],
        settings: Mapping[str, Any],
        generators: Mapping[str, torch.Generator] | None = None,
    ) -> Iterator[Checkpoint]:
        """The run, at its beginning or where the checkpoint is; in training mode until its end.

        objects, settings, generators: those of ``Checkpoint``, besides the networks, the
        session's own settings and torch's generators. An object with ``settings`` says what it
        is. At the end, and when the run is interrupted, all networks are in evaluation mode.
        Raises CheckpointError for a checkpoint that is damaged or of another run.
        """
        self.optimizers = [thing for thing in objects.values() if isinstance(thing, Optimizer)]
        try:
            with torch_seeded(self.seed, self.device) as of_torch:
                self.checkpoint = Checkpoint(
                    self.path,
                    {**objects, **self.networks},
                    {**(generators or {}), **of_torch},
                    {**self.settings, **settings},
                    every=self.every,
                )
                self.checkpoint.resume_or_create()
                for network in self.networks.values():
                    network.train()
                yield self.checkpoint
        finally:
            for network in self.networks.values():
                network.eval()

    def bar(self, total: int, done: int, unit: str = "step") -> Any:
        """A bar that begins at ``done``, with the time left."""
        from tqdm import tqdm

        hidden = None if self.progress is None else not self.progress
        return tqdm(total=total, initial=done, unit=unit, disable=hidden)

    @contextmanager
    def step(self, where: str) -> Iterator[None]:
        """One step, that counts only if it leaves every weight finite.

        Else, and for a FloatingPointError of its body, the networks' parameters and buffers are
        put back, and the error says where, and what to try.
        """
        before = [tensor.detach().clone() for tensor in self._tensors()]
        try:
            yield
            for network in self.networks.values():
                if not isfinite(greatest(network.parameters())):
                    raise FloatingPointError("a weight is not finite after a step")
        except FloatingPointError as error:
            with torch.no_grad():
                for tensor, old in zip(self._tensors(), before, strict=True):
                    tensor.copy_(old)
            rates = {f"{float(o.param_groups[0]['lr']):g}": None for o in self.optimizers}
            path = self.checkpoint.path
            raise FloatingPointError(
                f"{error}, in {where}: try a smaller lr than {' and '.join(rates)}, or check the "
                "data and the loss; the weights before this step were kept"
                + (f", and so was the checkpoint {path}" if path else "")
            ) from error

    def _tensors(self) -> list[Tensor]:
        networks = self.networks.values()
        return [t for network in networks for t in (*network.parameters(), *network.buffers())]


def require_finite(**numbers: float | Tensor) -> None:
    """FloatingPointError for a number, or a tensor of one, that is NaN or infinite.

    >>> require_finite(loss=torch.tensor(2.0), gradient=float("nan"))
    Traceback (most recent call last):
    FloatingPointError: the gradient is nan
    """
    for name, number in numbers.items():
        if not isfinite(number):
            raise FloatingPointError(f"the {name.replace('_', ' ')} is {float(number)}")


def greatest(tensors: Any) -> float:
    """The greatest modulus of all entries; NaN if there is one. 0 for no tensors.

    >>> greatest([torch.tensor([1.0, -3.0]), torch.zeros(2)])
    3.0
    """
    return float(get_total_norm([t.detach() for t in tensors], float("inf")))


def require_at_most(asked: int, begun: int, unit: str) -> None:
    """CheckpointError for a checkpoint that is farther than a run is asked to go.

    >>> require_at_most(3, 2, "epoch")
    """
    if begun > asked:
        raise CheckpointError(
            f"the checkpoint has begun {unit} {begun}, more than {unit}s={asked}: ask for "
            f"{unit}s={begun} or more, or give another path"
        )


@contextmanager
def torch_seeded(seed: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Torch's global generators of the CPU and the device, seeded; at the end as they were.

    Dropout draws from them, and so may a loss or an attack that was given no generator.

    >>> with torch_seeded(3, torch.device("cpu")) as generators:
    ...     list(generators), torch.initial_seed()
    (['torch cpu'], 3)
    """
    generators: dict[str, Any] = {"torch cpu": torch.default_generator}
    if device.type in ("cuda", "xpu"):
        of_type = torch.get_device_module(device).default_generators
        generators[f"torch {device.type}"] = of_type[device.index or 0]
    elif device.type == "mps":  # whose one generator is behind functions
        generators["torch mps"] = SimpleNamespace(
            manual_seed=torch.mps.manual_seed,
            get_state=torch.mps.get_rng_state,
            set_state=torch.mps.set_rng_state,
        )
    states = {name: generator.get_state() for name, generator in generators.items()}
    try:
        for generator in generators.values():
            generator.manual_seed(seed)
        yield generators
    finally:
        for name, generator in generators.items():
            generator.set_state(states[name])
