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
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, get_type_hints

import torch

from experiments.kept import Kept, Row, RunError, check_writable
from lib import data
from lib.data import DataError
from lib.runs import CheckpointError, ProcessLost, processes, records

SAID = (CheckpointError, DataError, FloatingPointError, ProcessLost)  # their text is enough
RUNS = Path(__file__).parent / "runs"


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
        check_writable(config.out)
        kept = Kept(config.runs / name, config.described(), resume=config.resume)
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


def _check_device(name: str) -> None:
    """RunError for a device that is unknown or not at hand; it names those that are."""
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    must = f"--device must be cpu or cuda, got {name}; at hand: {', '.join(there)}"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise RunError(must)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"{must} ({str(error).splitlines()[0]})") from error


def _said(row: Mapping[str, Any]) -> str:
    """A row's numbers, as one line."""
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "seed"}
    return ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
