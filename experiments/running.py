"""A run of an experiment: settings, rows that are kept as they come, a log, and the record.

An experiment is a module with

    Config               a frozen dataclass of settings, a subclass of ``Settings``
    cells(config)        the (variant, seed) that it measures, in order
    measure(config, variant, seed, device, checkpoint) -> row
                         one cell's numbers, or lists of numbers; checkpoint is a path for fit's
                         or play's, so that a cell goes on where it was stopped

``run`` does the rest: it measures the cells that are not kept yet, and writes the record when all
are there. Every cell has a file of its own, so that several commands may share the cells of a run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, get_type_hints

import torch
from filelock import FileLock, Timeout

from lib import data
from lib.data import DataError
from lib.runs import CheckpointError, ProcessLost, processes, records
from lib.runs.files import write_whole

SAID = (CheckpointError, DataError, FloatingPointError, ProcessLost)  # their text is enough
RUNS = Path(__file__).parent / "runs"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every experiment can be told."""

    datasets: ClassVar[tuple[str, ...]] = ()
    """What it reads of lib.data; the checksums of their files go into the record."""
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each ``--size`` but the usual one, the defaults that differ."""
    seeds: int = 5
    """How many seeds, from 0."""
    device: str = "cpu"
    """Where to compute: cpu, or cuda."""
    resume: bool = False
    """Go on with a run that was stopped."""
    out: Path = records.FOLDER
    """The folder of the record."""
    runs: Path = RUNS
    """The folder of logs, finished rows and checkpoints."""

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> Self:
        """The settings of a size, where it has other defaults; ``settings`` come before these."""
        return cls(**{**cls.sizes.get(size, {}), **settings})

    def described(self) -> dict[str, Any]:
        """The settings that the results depend on: all but the folders and ``resume``."""
        values = {k: v for k, v in vars(self).items() if k not in ("resume", "out", "runs")}
        return json.loads(json.dumps(values))

    def check(self, *may_be_zero: str) -> None:
        """ValueError for a number out of range: at once, and not when it is first used.

        Whole numbers are at least 1, of the names given at least 0; others finite and at least 0.
        """
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), types[field.name] is int
            least = int(whole and field.name not in may_be_zero)
            if (whole or types[field.name] is float) and not least <= value < math.inf:
                must = f">= {least}" if whole else "finite and >= 0"
                raise ValueError(f"{field.name} must be {must}, got {value}")

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each file that it reads."""
        files = [data.checksums(name) for name in self.datasets]
        return {name: sha256 for dataset in files for name, sha256 in dataset.items()}


class Experiment(Protocol):
    """What the module of an experiment holds."""

    Config: type[Settings]

    def cells(self, config: Any) -> Iterator[tuple[str, int]]: ...
    def measure(
        self, config: Any, variant: str, seed: int, device: torch.device, checkpoint: Path
    ) -> Row: ...


class RunError(Exception):
    """A run cannot begin or go on; the message says why and what to do."""


def run(name: str, experiment: Experiment, config: Settings) -> Path | None:
    """Measure every cell of an experiment that is not kept yet; then write its record.

    Returns the record's path; of several processes the first one writes and returns it, and all
    must see the same folders. Of several commands that share a run each measures what no other
    has begun; the last one writes the record, and the others return None.
    Raises RunError, before anything is written, for settings out of range, a device that is not
    at hand and folders that cannot be written to; for a run of other settings, or one that was
    begun, if ``resume`` is not set; and for a cell that fails, with its traceback in the log.
    """
    if config.seeds < 1:
        raise RunError(f"--seeds must be >= 1, got {config.seeds}")
    _check_device(config.device)
    from tqdm import tqdm

    torch.set_num_threads(1)
    with processes.started(config.device) as device:
        try:
            cells = list(experiment.cells(config))
        except ValueError as error:
            raise RunError(str(error)) from error
        kept = Kept(config.runs / name, config)
        origin = records.origin()
        first = processes.rank() == 0
        if first:  # now, and not hours later; and the others find the files in the cache
            for dataset in config.datasets:
                for split in ("train", "test"):
                    getattr(data, dataset)(split)
        processes.barrier()
        with tqdm(cells, desc=name, unit="cell", disable=None if first else True) as bar:
            for variant, seed in bar:
                bar.set_postfix_str(f"{variant}, seed {seed}")
                with kept.claimed(variant, seed, device) as mine:
                    if mine:
                        _measure(experiment, config, variant, seed, device, kept, tqdm.write)
        if not first:
            return None
        results: dict[str, list[Row]] = {}
        for variant, seed in cells:
            results.setdefault(variant, []).append(kept.row(variant, seed))
        missing = sum(row is None for rows in results.values() for row in rows)
        if missing:
            tqdm.write(f"{name}: another command is at {missing} cells, and writes the record")
            return None
        with kept.locked("record"):
            return records.save(
                name, config.described(), results, config.checksums(), origin, config.out
            )


def _measure(
    experiment: Experiment,
    config: Settings,
    variant: str,
    seed: int,
    device: torch.device,
    kept: Kept,
    write: Callable[[str], None],
) -> None:
    """Measure one cell and keep its row; a failure is one line, and its traceback in the log."""
    path = kept.folder / f"{variant}-{seed}.pt"
    start = time.time() - kept.begin(variant, seed, path)
    try:
        row = experiment.measure(config, variant, seed, device, path)
    except Exception as error:
        where = kept.log(f"{variant}, seed {seed} failed\n{traceback.format_exc()}")
        said = str(error) if isinstance(error, SAID) else f"{type(error).__name__}: {error}"
        raise RunError(f"{variant}, seed {seed}: {said} (the traceback is in {where})") from error
    row = {"seed": seed, **row, "seconds": round(time.time() - start, 1)}
    if processes.rank() == 0:
        kept.keep(variant, row)
        said = f"{variant}, seed {seed}: {_said(row)}"
        kept.log(said)
        write(said)


class Kept:
    """What a run has in its folder: its settings, a file for each cell, the log, checkpoints.

    settings.json               what all cells are measured with
    rows/VARIANT-SEED.json      {"row": ...} of a cell, or {"begun": ..., "spent": ...} in seconds
    rows/VARIANT-SEED.lock      held by the command that measures the cell; it falls with it
    """

    def __init__(self, folder: Path, config: Settings) -> None:
        self.folder = folder
        for needed in (folder / "rows", config.out):
            _check_writable(needed)
        path, now = folder / "settings.json", config.described()
        if path.exists() or (folder / "rows.json").exists():
            if not config.resume:
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
        with suppress(OSError), open(path, "a") as file:
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


def _check_device(name: str) -> None:
    """RunError for a device that is unknown or not at hand; it names those that are."""
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"it is {device.type}")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"--device must be cpu or cuda, got {name}; at hand: {', '.join(there)} ({reason})"
        ) from error


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"cannot write to {folder} ({error.strerror}): give another folder"
        ) from error


def _said(row: Mapping[str, Any]) -> str:
    """A row's numbers, as one line."""
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "seed"}
    return ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
