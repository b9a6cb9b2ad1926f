"""What a run has in its folder, so that it can be stopped, gone on with, and shared by commands."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lib.runs import processes
from lib.runs.files import write_whole

Row = dict[str, Any]


class RunError(Exception):
    """A run cannot begin or go on; the message says why and what to do."""


class Kept:
    """What a run has in its folder: its settings, a file for each cell, the log, checkpoints.

    settings.json               what all cells are measured with
    rows/VARIANT-SEED.json      {"row": ...} of a cell, or {"begun": ..., "spent": ...} in seconds
    rows/VARIANT-SEED.lock      held by the command that measures the cell; it falls with it
    """

    def __init__(self, folder: Path, now: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, path = folder, folder / "settings.json"
        check_writable(folder / "rows")
        if path.exists() or (folder / "rows.json").exists():
            if not resume:
                raise RunError(
                    f"a run was begun in {folder}: add --resume to go on with it, or delete it"
                )
            if not path.exists():
                raise RunError(f"the run in {folder} is of an older version: delete it")
            was = _read(path, "delete the folder, and begin again")
            # More seeds are more rows; everything else must be as it was.
            counted = ("seeds", "second_seeds")
            changed = [k for k in was | now if k not in counted and was.get(k) != now.get(k)]
            if changed:
                said = "; ".join(f"{k} was {was.get(k)}, is {now.get(k)}" for k in changed)
                raise RunError(
                    f"the run in {folder} has other settings ({said}): delete it, or "
                    "take them again"
                )
        processes.barrier()
        if processes.rank() == 0:
            with self.locked("settings"):  # another command may be about to write them too
                _write(path, now)

    def _path(self, variant: str, seed: int) -> Path:
        return self.folder / "rows" / f"{variant}-{seed}.json"

    def _state(self, variant: str, seed: int) -> dict[str, Any]:
        path = self._path(variant, seed)
        return _read(path, "delete it, and add --resume") if path.exists() else {}

    def row(self, variant: str, seed: int) -> Row | None:
        return self._state(variant, seed).get("row")

    @contextmanager
    def claimed(self, variant: str, seed: int, device: torch.device) -> Iterator[bool]:
        """Whether this command is to measure the cell: it is not done, and no other is at it."""
        lock = self.locked(f"{variant}-{seed}")
        mine = False
        if processes.rank() == 0:  # the others do as the first one does
            try:
                lock.acquire(blocking=False)
                mine = self.row(variant, seed) is None
            except Timeout:
                pass
        try:
            yield bool(processes.all_rows(torch.tensor([mine], device=device))[0])
        finally:
            lock.release()

    def locked(self, name: str) -> FileLock:
        return FileLock(self.folder / "rows" / f"{name}.lock")

    def begin(self, variant: str, seed: int, checkpoint: Path) -> float:
        """Note that a cell begins, or goes on; the seconds that its checkpoints took before."""
        state = self._state(variant, seed)
        begun, spent = state.get("begun", 0.0), state.get("spent", 0.0)
        if begun and checkpoint.exists():
            spent += max(0.0, checkpoint.stat().st_mtime - begun)
        if processes.rank() == 0:
            _write(self._path(variant, seed), {"begun": time.time(), "spent": spent})
        return spent

    def keep(self, variant: str, row: Row) -> None:
        _write(self._path(variant, row["seed"]), {"row": row})

    def log(self, text: str) -> Path:
        """Add to the log, whose path it returns; a full disk is no reason to fail."""
        path = self.folder / "log.txt"
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        return path


def _read(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): {remedy}") from error
    return found


def _write(path: Path, state: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(state, indent=1).encode())


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"cannot write to {folder} ({error.strerror}): give another folder"
        ) from error
