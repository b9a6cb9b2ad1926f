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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lib.checks import check_counts, check_device
from lib.runs.checkpoints import Checkpoint, CheckpointError
from lib.runs.seeds import torch_seeded

__all__ = [
    "Session",
    "all_finite",
    "require_at_most",
    "require_finite",
    "torch_seeded",
]

PRECISIONS = ("float32", "bfloat16")


class Session:
    """Networks that are trained together, and how.

    networks: by name; they are moved to the device, and stay there. seed: of torch's global
    generators, which the caller finds as they were. device: None is where the first network is.
    precision: "float32", or "bfloat16" by ``autocast``. channels_last: the memory layout of
    kernels. compile: ``compiled`` holds ``torch.compile(network)``; else the networks.
    checkpoint: a file to go on from if it is there, or None. It is written before the first step,
    about every ``every`` seconds and at the end. To use a network's weights alone:
    ``network.load_state_dict(checkpoints.load(path)["model"])``, by its name here.
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
        check_counts(-(2**63), seed=seed)
        check_device(device)
        if not networks:
            raise ValueError("networks must name one network or more, got {}")
        for name, network in networks.items():
            if not any(p.requires_grad for p in network.parameters()):
                raise ValueError(
                    f"the {name} has no parameters to train: give it some, or unfreeze them by "
                    "requires_grad_()"
                )
        first = next(iter(networks.values()))
        device = device or next(first.parameters()).device
        layout = torch.channels_last if channels_last else None
        for network in networks.values():
            network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.networks: dict[str, nn.Module] = dict(networks)
        self.seed, self.progress = seed, progress
        self.device = next(first.parameters()).device
        self.autocast: AbstractContextManager[Any] = nullcontext()
        if precision == "bfloat16" or torch.amp.is_autocast_available(self.device.type):
            self.autocast = torch.autocast(
                self.device.type, torch.bfloat16, enabled=precision == "bfloat16"
            )
        self._layout = torch.channels_last if channels_last else torch.preserve_format
        self.compiled: dict[str, Any] = self.networks
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

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the memory layout of the kernels."""
        return images.to(memory_format=self._layout)

    @contextmanager
    def step(self, where: str) -> Iterator[None]:
        """One step, that counts only if it leaves every weight finite.

        Else, and for a FloatingPointError of its body, the networks' parameters and buffers are
        put back, and the error says where, and what to try.
        """
        weights, buffers = self._tensors()
        before = [tensor.detach().clone() for tensor in weights + buffers]
        try:
            yield
            if not all_finite(weights):
                raise FloatingPointError("a weight is not finite after a step")
        except FloatingPointError as error:
            weights, buffers = self._tensors()  # a layer may have new ones
            with torch.no_grad():
                for tensor, old in zip(weights + buffers, before, strict=True):
                    tensor.copy_(old)
            rates = {f"{float(o.param_groups[0]['lr']):g}": None for o in self.optimizers}
            path = self.checkpoint.path
            raise FloatingPointError(
                f"{error}, in {where}: try a smaller lr than {' and '.join(rates)}, or check the "
                "data and the loss; the weights before this step were kept"
                + (f", and so was the checkpoint {path}" if path else "")
            ) from error

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        networks = self.networks.values()
        weights: list[Tensor] = [p for network in networks for p in network.parameters()]
        return weights, [buffer for network in networks for buffer in network.buffers()]


def require_finite(**numbers: float | Tensor | Sequence[Tensor]) -> None:
    """FloatingPointError, by its name, for a number or for tensors with NaN or infinity.

    >>> require_finite(loss=2.0, gradient=[torch.tensor([1.0, float("nan")])])
    Traceback (most recent call last):
    FloatingPointError: the gradient is not finite
    """
    for name, number in numbers.items():
        if isinstance(number, Tensor):
            number = float(number) if number.numel() == 1 else [number]
        if isinstance(number, Sequence) and not all_finite(number):
            raise FloatingPointError(f"the {name.replace('_', ' ')} is not finite")
        if isinstance(number, float) and not isfinite(number):
            raise FloatingPointError(f"the {name.replace('_', ' ')} is {number}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is NaN or infinite.

    >>> all_finite([torch.tensor([1.0, -3.0]), torch.full((2,), 1e30)])
    True
    """
    tensors = list(tensors)
    if isfinite(get_total_norm(tensors)):
        return True
    # A square may have been too large.
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def require_at_most(asked: int, begun: int, unit: str) -> None:
    """CheckpointError for a checkpoint that is farther than a run is asked to go.

    >>> require_at_most(3, 2, "epoch")
    """
    if begun > asked:
        raise CheckpointError(
            f"the checkpoint has begun {unit} {begun}, more than {unit}s={asked}: ask for "
            f"{unit}s={begun} or more, or give another path"
        )
