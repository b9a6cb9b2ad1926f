"""Records: what a full-scale run measured, kept so that the pages can show it.

    save(name, settings, results)    what ``python -m experiments`` writes at its end
    load(name)                       the record, or None where it has not been measured
    picture(pixels), pixels(text)    gray pictures as text, and back

A record is ``experiments/records/NAME.json``: settings, the results of every seed, their mean and
deviation, the checksums of the data, and the machine, versions, processes
and commit that they come from. ``schema.json`` beside it says what holds of every record of this
format, which has a number: where what it says changes, so does FORMAT.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.runs import processes
from lib.runs.files import write_whole

FORMAT = 1
FOLDER = Path(__file__).parents[2] / "experiments" / "records"
PACKAGES = ("torch", "numpy", "scipy", "POT")

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # for each variant, one row a seed


def load(name: str, folder: str | Path = FOLDER) -> dict[str, Any] | None:
    """The record of this name, or None if there is none: it is shown as missing.

    Raises ValueError for a file that is damaged, or of another format than this version's.

    >>> from lib.runs import records
    >>> records.load("not-measured") is None
    True
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        return None
    again = f"measure it again (python -m experiments {name}), or take the file of this version"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT}, got {found}: {again}")
    return record


def save(
    name: str,
    settings: Mapping[str, Any],
    results: Results,
    data: Mapping[str, str],
    origin: Mapping[str, Any],
    folder: str | Path = FOLDER,
) -> Path:
    """Write a record, whole or not at all, and return its path.

    data: the SHA-256 of each file that was read, none for synthetic data. origin: of ``origin()``.

    Raises ValueError for no result, and for numbers that are not finite.

    >>> import tempfile
    >>> from lib.runs import records
    >>> rows = {"ours": [{"seed": 0, "error": 0.1}, {"seed": 1, "error": 0.3}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = records.save("demo", {}, rows, {}, records.origin(), folder)
    ...     round(records.load("demo", folder)["summary"]["ours"]["error"]["mean"], 3)
    0.2
    """
    if not results or not all(results.values()):
        raise ValueError("a record needs at least one variant, and a row for each of them")
    _check_rows(results)
    record = {
        "name": name,
        "format": FORMAT,
        "settings": dict(settings),
        "results": {variant: [dict(row) for row in rows] for variant, rows in results.items()},
        "summary": {variant: _summary(rows) for variant, rows in results.items()},
        "data": dict(data),
        **origin,
    }
    path = Path(folder) / f"{name}.json"
    write_whole(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    return path


def picture(pixels: Tensor) -> str:
    """A gray picture, bytes [h, w], as text that a row can hold: a PNG in base 64.

    >>> import torch
    >>> from lib.runs import records
    >>> gray = torch.arange(6, dtype=torch.uint8).view(2, 3)
    >>> torch.equal(records.pixels(records.picture(gray)), gray)
    True
    """
    from PIL import Image

    if pixels.dtype != torch.uint8 or pixels.dim() != 2:
        raise ValueError(f"pixels must be uint8 [h, w], got {pixels.dtype} {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pixels(text: str) -> Tensor:
    """The bytes [h, w] of a ``picture``. Raises ValueError for a text that is none.

    >>> from lib.runs import records
    >>> gray = torch.zeros(4, 6, dtype=torch.uint8)
    >>> records.pixels(records.picture(gray)).shape
    torch.Size([4, 6])
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("L")
    except (ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"text must be a PNG in base 64, got {text[:20]!r}...") from error
    return torch.from_numpy(np.array(image))


def origin() -> dict[str, Any]:
    """Where results come from: the machine, the number of processes, and the commit.

    >>> from lib.runs import records
    >>> sorted(records.origin())
    ['commit', 'machine', 'processes']
    """
    return {"machine": machine(), "processes": processes.world_size(), "commit": _commit()}


def machine() -> dict[str, Any]:
    """The processor, the accelerator if there is one, and the versions that results depend on.

    >>> from lib.runs import records
    >>> records.machine()["cores"] >= 1
    True
    """
    described = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    if torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described | {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}}


def _check_rows(results: Results) -> None:
    """ValueError for rows without the first one's numbers, and for numbers that are not finite."""
    for variant, rows in results.items():
        for row in rows:
            missing = sorted(_numbers(rows[0]).keys() - row.keys())
            if missing:
                raise ValueError(f"each row of {variant!r} must hold {missing}, got {dict(row)}")
            for name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{name} must be finite, got {value} in {variant!r}")


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is summed up of a row: every number but the seed."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name != "seed"}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds, of every number but the seed."""
    columns = {name: [float(row[name]) for row in rows] for name in _numbers(rows[0])}
    return {
        name: {
            "mean": statistics.fmean(column),
            "deviation": statistics.stdev(column) if len(column) > 1 else 0.0,
        }
        for name, column in columns.items()
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit that is checked out, marked if other files than records differ from it."""
    try:
        commit = _git("describe", "--always", "--abbrev=12")
        others = ("--", ":/", f":(exclude,top)experiments/{FOLDER.name}")
        changed = _git("status", "--porcelain", "--untracked-files=no", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    asked = ["git", *arguments]
    said = subprocess.run(asked, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return said.stdout.strip()
