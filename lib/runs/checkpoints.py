"""Checkpoints: what a run needs to go on from where it was killed (slides 23 and 40).

    save(path, state)    at any moment the file at path is whole: the old state or the new one
    load(path)           the state, or a CheckpointError that says what is wrong and what to do
    Keeper               the parts of a run (model, optimizer, generators, ...) kept at a path

A state is a dictionary of tensors, numbers, strings, lists and dictionaries. The file is one
line of text, the SHA-256 of what follows, and what ``torch.save`` makes of the state, read with
``weights_only=True``: reading a checkpoint runs no code out of it.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lib.runs import processes
from lib.runs.files import write_whole

_FIRST_LINE = b"EE-556 lecture 11 checkpoint, format 1\n"
_ADVICE = "delete it to start anew, or give another path"


class CheckpointError(ValueError):
    """A checkpoint is damaged, or not what was asked for; the message says what to do."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state so that the file at path is never a part of one, whenever the run is killed.

    Folders on the way are made. One run at a time may write to a path. Raises OSError where the
    file cannot be written, with nothing half-written left.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    raw = stream.getbuffer()
    write_whole(path, _FIRST_LINE + hashlib.sha256(raw).digest(), raw)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that ``save`` wrote, its tensors on the CPU.

    Raises FileNotFoundError where there is no file, and CheckpointError for a file that save
    did not write, for one that is damaged, and for a state that holds other things than data.
    """
    raw = Path(path).read_bytes()
    if not raw.startswith(_FIRST_LINE):
        raise CheckpointError(f"{path} is not a checkpoint of this package: {_ADVICE}")
    start = len(_FIRST_LINE) + hashlib.sha256().digest_size
    digest, raw = raw[len(_FIRST_LINE) : start], raw[start:]
    if hashlib.sha256(raw).digest() != digest:
        raise CheckpointError(f"{path} is damaged or cut short: {_ADVICE}")
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} holds something that is not plain data, or that this version of torch "
            f"({torch.__version__}) cannot read: {_ADVICE}"
        ) from error


class Keeper:
    """Keeps a run at a path: its parts, its generators, and the settings that it was begun with.

    parts: by name, what has ``state_dict`` and ``load_state_dict``, or None for what is not
    there; generators: torch.Generators, in a fixed order; settings: numbers and strings that
    must be the same when the run goes on. What can be told about the parts is added to them:
    the model's layers and shapes, the optimizer's and the schedule's numbers.
    path: None keeps nothing. every: seconds between two calls of save_if_due that save.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        parts: dict[str, Any],
        generators: Sequence[torch.Generator],
        settings: dict[str, Any],
        *,
        every: float = 60.0,
    ) -> None:
        self.path, self.parts, self.generators = path and Path(path), parts, generators
        self.settings = dict(settings) if path else {}
        for name, part in parts.items() if path else ():
            self.settings |= _description(name, part)
        self.every, self.due = every, time.monotonic() + every

    def start(self) -> None:
        """Set parts and generators to the checkpoint's, or write a first one where none is yet.

        Raises CheckpointError, naming all that differs, for a checkpoint of other settings.
        """
        if self.path is None:
            return
        found = self.path.exists()
        if not found:
            self.save()
        processes.wait()
        state = load(self.path)  # a new one too: better learn now than later that it cannot be
        was = state.get("settings", {})
        differences = [
            f"{name} was {_short(was.get(name))}, is {_short(self.settings.get(name))}"
            for name in was | self.settings
            if was.get(name) != self.settings.get(name)
        ]
        if differences:
            raise CheckpointError(
                f"{self.path} is of another run ({'; '.join(differences)}): "
                f"take the same settings to go on with it, {_ADVICE}"
            )
        if found:
            for name, part in self.parts.items():
                if part is not None:
                    part.load_state_dict(state[name])
            for generator, saved in zip(self.generators, state["generators"], strict=True):
                generator.set_state(saved)

    def save(self) -> None:
        """Write the checkpoint; of several processes, which are all alike, the first one does."""
        if self.path is None or processes.rank() > 0:
            return
        parts = self.parts.items()
        state = {name: None if part is None else part.state_dict() for name, part in parts}
        state["generators"] = [generator.get_state() for generator in self.generators]
        save(self.path, state | {"settings": self.settings})
        self.due = time.monotonic() + self.every

    def save_if_due(self) -> None:
        """Save if the last time is ``every`` seconds ago."""
        if time.monotonic() >= self.due:
            self.save()


@contextmanager
def torch_seeded(seed: int, device: torch.device) -> Iterator[list[torch.Generator]]:
    """Torch's global generators of the CPU and the device, seeded; at the end as they were.

    Dropout draws from them, and so may a loss or an attack that was given no generator.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def checksum(*tensors: torch.Tensor) -> int:
    """A number that tells other data apart: the CRC-32 of the tensors' bytes."""
    value = 0
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(raw.numpy(), value)
    return value


def _description(name: str, part: Any) -> dict[str, Any]:
    """What of a part must not change between two pieces of a run, as far as it can be told."""
    description = {name: None if part is None else type(part).__name__}
    if isinstance(part, nn.Module):
        layers = [module for module in part.modules() if not list(module.children())]
        weights = part.state_dict().items()
        description[f"{name} layers"] = " ".join(type(layer).__name__ for layer in layers)
        description[f"{name} weights"] = " ".join(f"{k} {list(v.shape)}" for k, v in weights)
    elif isinstance(part, Optimizer):
        for i, group in enumerate(part.param_groups):
            description |= {f"{name}[{i}].{k}": repr(group[k]) for k in group if k != "params"}
    elif isinstance(part, LRScheduler):
        state = {k: repr(v) for k, v in part.state_dict().items()}
        description |= {f"{name}.{k}": v for k, v in state.items() if " at 0x" not in v}
    return description


def _short(value: Any) -> str:
    text = str(value)
    if len(text) <= 80:
        return text
    return f"{text[:50]}... (CRC-32 {zlib.crc32(text.encode()):08x})"
