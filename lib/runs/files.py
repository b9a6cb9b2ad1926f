"""Files that are whole at any moment: what checkpoints, records and downloads are written with."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(
    path: str | os.PathLike[str], *parts: bytes | memoryview, suffix: str = ".partial"
) -> None:
    """Write bytes so that under the name is the old file or the new one, never a part of one.

    They go to ``<path><suffix>`` in the same folder, reach the disk (fsync), and only then take
    the name, so a run may be killed and a disk may be full at any moment. Folders on the way are
    made. Several processes may write to a path if each has its own suffix. Raises OSError where it
    cannot be written, and leaves nothing of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + suffix)
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name reaches the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
