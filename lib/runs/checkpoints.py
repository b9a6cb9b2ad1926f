"""Checkpoints: what a run needs to go on from where it was killed (slides 23 and 40).

    save(path, state)    at any moment the file at path is whole: the old state or the new one
    load(path)           the state, or a CheckpointError that says what is wrong and what to do
    Checkpoint           the objects of a run (model, optimizer, ...) and its generators, at a path

A state is a dictionary of tensors, numbers, strings, lists and dictionaries. The file is what
``torch.save`` makes of it, and at its end, as the comment of the zip archive that this is, stands
its SHA-256. ``torch.load(path, weights_only=True)`` opens it too, but does not check that.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.runs import processes
from lib.runs.files import write_whole
from lib.runs.fingerprints import INITIAL, Fingerprint, differences, fingerprint

__all__ = ["Checkpoint", "CheckpointError", "load", "save"]

MARK = b"EE-556 lecture 11 checkpoint, SHA-256 "
COMMENT = len(MARK) + 64  # with the digest in hexadecimal digits
ADVICE = "delete it to start anew, or give another path"


class CheckpointError(ValueError):
    """A checkpoint is damaged, or not what was asked for; the message says what to do."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state so that the file at path is never a part of one, whenever the run is killed.

    Folders on the way are made. One run at a time may write to a path. Raises OSError where the
    file cannot be written, with nothing half-written left.

    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/run.pt"
    >>> save(path, {"step": 3, "weights": torch.ones(2)})
    >>> load(path)["step"], torch.load(path, weights_only=True)["step"]
    (3, 3)
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be a dictionary, got {type(state).__name__}")
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    stream.seek(-2, io.SEEK_END)  # a zip archive ends with the length of its comment
    stream.write(struct.pack("<H", COMMENT))
    raw = stream.getbuffer()
    write_whole(path, raw, MARK + hashlib.sha256(raw).hexdigest().encode())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that ``save`` wrote, its tensors on the CPU.

    Raises FileNotFoundError where there is no file, and CheckpointError for a file that save
    did not write, for one that is damaged, and for a state that holds other things than data.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "run.pt")
    >>> _ = path.write_text("hello")
    >>> load(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lib.runs.checkpoints.CheckpointError: ...run.pt is cut short, or not a checkpoint of ...
    """
    whole = Path(path).read_bytes()
    raw, comment = whole[:-COMMENT], whole[-COMMENT:]
    if not comment.startswith(MARK):
        raise CheckpointError(f"{path} is cut short, or not a checkpoint of this package: {ADVICE}")
    if hashlib.sha256(raw).hexdigest().encode() != comment[len(MARK) :]:
        raise CheckpointError(f"{path} is damaged: {ADVICE}")
    try:
        return torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} holds something that is not plain data, or that this version of torch "
            f"({torch.__version__}) cannot read: {ADVICE}"
        ) from error


class Checkpoint:
    """A run at a path: its objects, its generators, and what it was begun with.

    objects: by name, what has ``state_dict`` and ``load_state_dict``, or None for what is not
    there; the first one's ``load_state_dict`` may refuse the state before anything changes.
    generators: by name, torch.Generators or others with ``get_state`` and ``set_state``.
    settings: by name, what else must be the same when the run goes on: numbers, functions,
    tensors, objects (lib.runs.fingerprints says how each is known). Generators that are found
    inside them, as in ``partial(attack, generator=g)``, are kept too.
    path: None keeps nothing. every: seconds between two calls of save_if_due that save.

    >>> import tempfile
    >>> path, model = f"{tempfile.mkdtemp()}/run.pt", nn.Linear(2, 1)
    >>> Checkpoint(path, {"model": model}, {}, {"lr": 0.1}).resume_or_create()
    False
    >>> Checkpoint(path, {"model": model}, {}, {"lr": 0.2}).resume_or_create()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    lib.runs.checkpoints.CheckpointError: ...run.pt is of another run (lr was 0.1, is 0.2): ...
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        objects: Mapping[str, Any],
        generators: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        every: float = 60.0,
    ) -> None:
        for name, thing in objects.items():
            if thing is not None and not hasattr(thing, "load_state_dict"):
                raise ValueError(
                    f"{name} must have state_dict and load_state_dict, got {type(thing).__name__}"
                )
        self.path = None if path is None else Path(path)
        self.objects, self.generators = dict(objects), dict(generators)
        self.every, self.due = every, time.monotonic() + every
        self.fingerprint = Fingerprint()
        if self.path is not None:
            self.fingerprint = fingerprint(**{**settings, **objects})
            self.generators = self.fingerprint.generators | self.generators

    def resume_or_create(self) -> bool:
        """Set objects and generators to the checkpoint's (True), or write a first one (False).

        A network may begin with the weights that the run began with, or be where it stopped.
        Raises CheckpointError, naming what differs, for a checkpoint of another run.
        """
        if self.path is None:
            return False
        found = self.path.exists()
        if not found:
            self.save()
        processes.barrier()
        state = load(self.path)  # a new one too: better learn now than later that it cannot be
        self._check(state)
        if found:
            for name, thing in self.objects.items():
                if thing is not None:
                    thing.load_state_dict(state[name])
            for name, generator in self.generators.items():
                saved = state["generators"].get(name)
                # On another kind of device the generators are other ones.
                if saved is not None and saved.shape == generator.get_state().shape:
                    generator.set_state(saved)
        return found

    def save(self) -> None:
        """Write the checkpoint; of several processes, which are all alike, the first one does."""
        if self.path is None or processes.rank() > 0:
            return
        objects = self.objects.items()
        state = {name: None if thing is None else thing.state_dict() for name, thing in objects}
        state["generators"] = {name: g.get_state() for name, g in self.generators.items()}
        state["settings"] = self.fingerprint.settings
        state["options"] = self.fingerprint.options
        save(self.path, state)
        self.due = time.monotonic() + self.every

    def save_if_due(self) -> None:
        """Save if the last time is ``every`` seconds ago."""
        if time.monotonic() >= self.due:
            self.save()

    def _check(self, state: Mapping[str, Any]) -> None:
        began = Fingerprint(state.get("settings", {}), state.get("options", {}))
        stopped = Fingerprint(dict(began.settings), began.options)
        for name, thing in self.objects.items():
            if isinstance(thing, nn.Module):
                for path, weights in (state.get(name) or {}).items():
                    stopped.add(f"{name}{INITIAL}{path}", weights)
        changed = differences(began, self.fingerprint)
        if changed and differences(stopped, self.fingerprint):
            raise CheckpointError(
                f"{self.path} is of another run ({'; '.join(changed)}): take the same settings "
                f"and the same initial networks to go on with it, {ADVICE}"
            )
