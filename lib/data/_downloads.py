"""Files fetched once and checked: what ``lib.data`` reads its full data sets from.

A file lives in the cache: the folder that the environment variable EE556_DATA names, else one
in the user's own cache. It is used only when its SHA-256 is the pinned one; one that is missing
or damaged is fetched (again). Under a file's name there is never a part of it, and whatever
goes wrong is one ``DataError`` that says which file, what is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


class DataError(OSError):
    """A data file is missing or damaged, or cannot be stored; the message says what to do."""


@dataclass(frozen=True)
class File:
    """A file of the cache: its name there, the SHA-256 of its bytes, and where it comes from.

    urls: its homes, tried one after the other; or archive: the tar.gz that holds a file so named.
    """

    name: str
    sha256: str
    urls: tuple[str, ...] = ()
    archive: File | None = None

    @property
    def path(self) -> Path:
        return cache_folder() / self.name


def cache_folder() -> Path:
    """Where downloads live: the folder named by EE556_DATA, else one in the user's cache.

    Raises DataError where there is no such home: for a user without one, or an unknown ``~name``.
    """
    import pooch

    named = os.environ.get("EE556_DATA")
    try:
        return Path(named or pooch.os_cache("ee556-lecture11")).expanduser()
    except RuntimeError:
        problem = f"EE556_DATA={named} names no home" if named else "this user has no home"
        raise DataError(
            f"there is no folder for downloads, as {problem}: set EE556_DATA to a folder that can "
            "be written"
        ) from None


def load(file: File) -> bytes:
    """The bytes of a file, from the cache or else fetched; what is stored was checked before."""
    raw, problem = cached(file)
    if raw is not None:
        return raw
    if file.archive is not None:
        try:
            load(file.archive)
        except DataError as error:
            raise DataError(f"{file.name} {problem}, and its archive: {error}") from None
    failures = []
    for url in (file.archive.name,) if file.archive else file.urls:
        failures.append(f"{url}: {_fetch(file, url)}")
        raw, _ = cached(file)
        if raw is not None:
            return raw
    raise DataError(
        f"{file.name} {problem}, and it could not be fetched: {'; '.join(failures)}. "
        f"Put the file with SHA-256 {file.sha256} at {file.path}, or set EE556_DATA to a "
        "folder that holds it, or to one that can be written and try again with a network."
    )


def cached(file: File) -> tuple[bytes | None, str]:
    """The bytes of the cached file if they are the right ones, else None and what is wrong."""
    try:
        raw = file.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, "is not in the cache"
    except DataError:
        raise
    except OSError as error:
        return None, f"cannot be read from the cache ({error.strerror})"
    digest = hashlib.sha256(raw).hexdigest()
    return (raw, "") if digest == file.sha256 else (None, f"is damaged (SHA-256 {digest})")


def _fetch(file: File, url: str) -> str:
    """Bring a file into the cache; returns what went wrong, or nothing."""
    import pooch

    # Without this header a server may send the content of a .gz unpacked.
    over_http = pooch.HTTPDownloader(progressbar=True, headers={"Accept-Encoding": "identity"})
    registry, urls = {file.name: f"sha256:{file.sha256}"}, {file.name: url}
    cache = pooch.create(cache_folder(), "", registry=registry, urls=urls)
    try:
        cache.fetch(file.name, downloader=partial(_extract, file) if file.archive else over_http)
    except Exception as error:  # also what the client does not turn into an error of its own
        return _reason(error)
    return ""


def _extract(file: File, url: str, output: str, pooch: Any) -> None:
    """A downloader of pooch that reads the archive's member of that name, and no path of it."""
    assert file.archive is not None
    with tarfile.open(file.archive.path, "r|gz") as members, open(output, "wb") as target:
        for member in members:
            if member.name == file.name and (content := members.extractfile(member)):
                return shutil.copyfileobj(content, target)
    raise DataError(f"the archive lacks {file.name}")


def _reason(error: Any) -> str:
    """Why a file could not be fetched, in one line."""
    from requests import HTTPError, exceptions

    name, line = type(error).__name__, str(error).partition("\n")[0].rstrip(".")
    broken_off = exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError
    match error:
        case HTTPError():
            return f"the server answered {line}"
        case exceptions.SSLError():
            return "its certificate is not trusted (set REQUESTS_CA_BUNDLE to your network's)"
        case exceptions.ProxyError():
            return "no connection to the proxy that HTTPS_PROXY or HTTP_PROXY names"
        case _ if isinstance(error, broken_off):
            return f"no connection, or it broke off ({name})"
        case ValueError() if "hash of downloaded file" in line:
            return "what came has another SHA-256 (it is truncated, or another file)"
        case PermissionError() | OSError(errno=int()):
            return f"the cache cannot be written ({error.strerror or line})"
        case OSError() if "certificate bundle" in line:
            return f"{line} (REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names it)"
    return f"{line} ({name})"
