"""A run of an experiment: settings, rows that are kept as they come, a log, and the record.

An experiment is a module with

    Config               a frozen dataclass of settings, a subclass of ``Settings``
    cells(config)        the (variant, seed) that it measures, in order
    measure(config, variant, seed, device, checkpoint) -> row
                         one cell's numbers, or lists of numbers; checkpoint is a path for fit's
                         or play's, so that a cell goes on where it was stopped

``run`` does the rest: it measures the cells that are not kept yet, and writes the record when all
are there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch

from lib import data, processes, records
from lib.files import write_whole

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
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            least = int(whole and field.name not in may_be_zero)
            if (whole or field.type == "float") and not least <= value < math.inf:
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
    must see the same folders. Raises RunError or ValueError, before anything is written, for
    settings out of range, a device that is not at hand and folders that cannot be written to; and
    for a run of other settings, or one that was begun, if ``resume`` is not set.
    """
    if config.seeds < 1:
        raise RunError(f"--seeds must be >= 1, got {config.seeds}")
    if not config.device.startswith(("cpu", "cuda")):
        raise RunError(f"--device must be cpu or cuda, got {config.device}")
    from tqdm import tqdm

    torch.set_num_threads(1)
    with processes.started(config.device) as device:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"--device {config.device} is not at hand: {reason}") from error
        cells = list(experiment.cells(config))
        kept = _Kept(config.runs / name, config)
        origin = records.origin()
        first = processes.rank() == 0
        if first:  # now, and not hours later; and the others find the files in the cache
            for dataset in config.datasets:
                for split in ("train", "test"):
                    getattr(data, dataset)(split)
        processes.wait()
        with tqdm(cells, desc=name, unit="cell", disable=None if first else True) as bar:
            for variant, seed in bar:
                bar.set_postfix_str(f"{variant}, seed {seed}")
                row = kept.row(variant, seed)
                if row is None:
                    path = kept.folder / f"{variant}-{seed}.pt"
                    start = time.time() - kept.begin(path)
                    row = experiment.measure(config, variant, seed, device, path)
                    row = {"seed": seed, **row, "seconds": round(time.time() - start, 1)}
                    kept.keep(variant, row)
                    kept.log(f"{variant}, seed {seed}: {_said(row)}", tqdm.write)
        if not first:
            return None
        results: dict[str, list[Row]] = {}
        for variant, seed in cells:
            results.setdefault(variant, []).append(kept.row(variant, seed))
        return records.save(
            name, config.described(), results, config.checksums(), origin, config.out
        )


class _Kept:
    """The rows of a run, in ``rows.json`` beside its log and checkpoints."""

    def __init__(self, folder: Path, config: Settings) -> None:
        self.folder, self.path = folder, folder / "rows.json"
        self.described, self.rows, self.begun = config.described(), {}, {}
        for needed in (folder, config.out):
            _check_writable(needed)
        if self.path.exists():
            state = json.loads(self.path.read_text())
            was, now = state["settings"], self.described
            # More seeds are more rows; everything else must be as it was.
            changed = [k for k in was | now if k != "seeds" and was.get(k) != now.get(k)]
            if not config.resume:
                raise RunError(
                    f"a run was begun in {folder}: add --resume to go on with it, or delete it"
                )
            if changed:
                said = "; ".join(f"{k} was {was.get(k)}, is {now.get(k)}" for k in changed)
                raise RunError(
                    f"the run in {folder} has other settings ({said}): delete it, or "
                    "take them again"
                )
            self.rows, self.begun = state["rows"], state.get("begun", {})
        processes.wait()

    def begin(self, checkpoint: Path) -> float:
        """Note that a cell begins, or goes on; the seconds that its checkpoints took before."""
        begun, spent = self.begun.get(checkpoint.stem, (0.0, 0.0))
        if begun and checkpoint.exists():
            spent += max(0.0, checkpoint.stat().st_mtime - begun)
        self.begun[checkpoint.stem] = time.time(), spent
        self._write()
        return spent

    def row(self, variant: str, seed: int) -> Row | None:
        return self.rows.get(f"{variant}-{seed}")

    def keep(self, variant: str, row: Row) -> None:
        cell = f"{variant}-{row['seed']}"
        self.rows[cell] = row
        self.begun.pop(cell)
        self._write()

    def _write(self) -> None:
        if processes.rank() == 0:
            state = {"settings": self.described, "rows": self.rows, "begun": self.begun}
            write_whole(self.path, json.dumps(state, indent=1).encode())

    def log(self, text: str, write: Callable[[str], None]) -> None:
        if processes.rank() == 0:
            with open(self.folder / "log.txt", "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
            write(text)


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
