"""Files fetched once and checked: what ``lib.data`` reads its full data sets from.

A file lives in the cache: the folder that the environment variable EE556_DATA names, else one
in the user's own cache. It is used only when its SHA-256 is the pinned one; one that is missing
or damaged is fetched (again). Under a file's name there is never a part of it, and whatever
goes wrong is one ``DataError`` that says which file, what is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from lib.runs.files import write_whole


class DataError(OSError):
    """A data file is missing or damaged, or cannot be stored; the message says what to do."""


def cache_folder() -> Path:
    """Where downloads live: the folder named by EE556_DATA, else one in the user's cache."""
    import pooch

    return Path(os.environ.get("EE556_DATA") or pooch.os_cache("ee556-lecture11")).expanduser()


@dataclass(frozen=True)
class File:
    """A file of the cache: its name there, the SHA-256 of its bytes, and where to fetch it."""

    name: str
    sha256: str
    urls: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return cache_folder() / self.name


def cached(file: File) -> tuple[bytes | None, str]:
    """The bytes of the cached file if they are the right ones, else None and what is wrong."""
    try:
        raw = file.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, "is not in the cache"
    except OSError as error:
        return None, f"cannot be read from the cache ({error.strerror})"
    digest = hashlib.sha256(raw).hexdigest()
    return (raw, "") if digest == file.sha256 else (None, f"is damaged (SHA-256 {digest})")


def load(file: File) -> bytes:
    """The bytes of a file, from the cache or else fetched; pooch stores only what it checked."""
    raw, problem = cached(file)
    failures = []
    for url in () if raw is not None else file.urls:
        failures.append(f"{url}: {_fetch(file, url)}")
        raw, _ = cached(file)
        if raw is not None:
            break
    if raw is None:
        raise DataError(
            f"{file.name} {problem}, and it could not be fetched: {'; '.join(failures)}. "
            f"Put the file with SHA-256 {file.sha256} at {file.path}, or set EE556_DATA to a "
            "folder that holds it, or to one that can be written and try again with a network."
        )
    return raw


def _fetch(file: File, url: str) -> str:
    """Download into the cache; returns what went wrong, or nothing."""
    import pooch
    import requests

    # Without this header a server may send the content of a .gz unpacked.
    downloader = pooch.HTTPDownloader(progressbar=True, headers={"Accept-Encoding": "identity"})
    try:
        pooch.retrieve(
            url, f"sha256:{file.sha256}", file.path.name, file.path.parent, downloader=downloader
        )
    except requests.HTTPError as error:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    except requests.RequestException as error:
        return f"no connection, or it broke off ({type(error).__name__})"
    except ValueError:
        return "what came has another SHA-256 (it is truncated, or another file)"
    except OSError as error:
        return f"the cache cannot be written ({error.strerror or error})"
    return ""


def unpack(archive: bytes, files: tuple[File, ...]) -> None:
    """Write the wanted members of a tar.gz to the cache, each checked and whole.

    Members are looked up by name, and written under our own names: no path of the archive is
    ever used, and what is not wanted, or not a plain file, is passed over.
    Raises DataError if a wanted member is missing or another than it should be.
    """
    wanted = {file.name: file for file in files}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as members:
        for member in members:
            if member.isreg() and member.name in wanted:
                raw = members.extractfile(member).read()
                if hashlib.sha256(raw).hexdigest() == wanted[member.name].sha256:
                    _store(wanted.pop(member.name).path, raw)
    if wanted:
        raise DataError(f"the archive lacks {', '.join(wanted)} with the right SHA-256")


def _store(path: Path, raw: bytes) -> None:
    try:
        write_whole(path, raw, suffix=f".{os.getpid()}.partial")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): set EE556_DATA to a folder with space "
            "that can be written"
        ) from None
