"""Bad, odd and extreme inputs of games, models, data, runs and pages, a row each."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inputs import Raises, anything, call, examine, like, near, rows
from torch import nn

from lib import data, games, models
from lib.data import Images, fundus_phantoms
from lib.models import Normalize, predict
from lib.pages import exercises, interactive, plots, say, setup, source
from lib.runs import Checkpoint, Session, checkpoints, fingerprints, processes, records

NAN, INF = math.nan, math.inf

X = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
ONE = torch.tensor(1.0)
descend = partial(call, games.gradient_descent_ascent, lambda x, y: x * y)
ahead = partial(call, games.extragradient)
GAMES = {
    "no step size": (descend(ONE, ONE, 0.0, 2), r"step_size must be finite and > 0.*got 0.0"),
    "a step of NaN": (descend(ONE, ONE, NAN, 2), r"step_size must be finite and > 0.*got nan"),
    "a step of text": (descend(ONE, ONE, "0.1", 2), r"step_size must be finite .*got '0.1'"),
    "three step sizes": (descend(ONE, ONE, (0.1, 0.1, 0.1), 2), r"step_size must .*a pair, got"),
    "no step": (descend(ONE, ONE, 0.1, 0), r"steps must be >= 1, got 0"),
    "half a step": (descend(ONE, ONE, 0.1, 2.5), r"steps must be a whole number, got 2.5"),
    "integers": (descend(torch.tensor(1), ONE, 0.1, 2), r"x0 must .*float.*got torch.int64"),
    "a number": (descend(1.0, ONE, 0.1, 2), r"x0 must .*got float"),
    "NaN": (descend(ONE, ONE * NAN, 0.1, 2), r"y0 must .*got NaN"),
    "no values": (descend(ONE.to("meta"), ONE, 0.1, 2), r"x0 must .*meta"),
    "a vector": (
        ahead(lambda x, y: x * torch.ones(2), ONE, ONE, 0.1, 2),
        r"phi must return a scalar tensor, got",
    ),
    "no tensor": (ahead(lambda x, y: 1.0, ONE, ONE, 0.1, 2), r"phi must return a scalar .*got 1.0"),
    "in place": (ahead(lambda x, y: x.mul_(y), ONE, ONE, 0.1, 2), r"phi changes .* in place: let"),
    "a projection of one": (
        ahead(lambda x, y: x * y, ONE, ONE, 0.1, 2, project=lambda x, y: x),
        r"project must return \(x, y\).*got Tensor",
    ),
    "no phi": (ahead(None, ONE, ONE, 0.1, 2), r"phi must be a function .*got None"),
    "a constant": (
        ahead(lambda x, y: ONE, ONE, ONE, 0.1, 2),
        lambda path: near([1, 1, 1])(path[0]),
    ),
    "one of two": (
        call(games.optimistic_gradient, lambda x, y: x * x, ONE, ONE, 0.1, 1),
        lambda path: near([1, 1])(path[1]),
    ),
    "a start of no entries": (
        ahead(lambda x, y: (x * y).sum(), ONE.new_ones(0), ONE.new_ones(0), 0.1, 2),
        lambda path: list(path[0].shape) == [3, 0],
    ),
}
NORMALIZE = Normalize((3, 4, 4), 0.5, 0.25)
MODELS = {
    "no shape": (call(models.mlp, ()), r"shape must hold at least one number, got \(\)"),
    "no channel": (call(models.mlp, (0, 2, 2)), r"shape must hold whole numbers >= 1, got \(0"),
    "half a pixel": (call(models.linear, (1, 2.5)), r"shape must hold whole numbers .*2.5"),
    "a shape that is a number": (call(models.mlp, 784), r"shape must hold whole .*got 784"),
    "no unit": (call(models.mlp, hidden=(0,)), r"hidden must hold whole numbers >= 1, got \(0,\)"),
    "a width": (call(models.mlp, hidden=200), r"hidden must hold whole numbers >= 1, got 200"),
    "no class": (call(models.linear, classes=0), r"classes must hold whole numbers >= 1, got"),
    "an activation": (call(models.mlp, activation="gelu"), r"activation must be one of .*'gelu'"),
    "no deviation": (call(models.mlp, std=0.0), r"std must be > 0, got \[0.0\]"),
    "a mean of NaN": (call(models.mlp, mean=NAN), r"mean must be finite, got \[nan\]"),
    "two means": (
        call(models.mlp, mean=(0.1, 0.2)),
        r"mean must be a number or .* 1 channels, got 2",
    ),
    "a mean of text": (call(models.mlp, mean="0.1"), r"mean must be a number or .*got '0.1'"),
    "a small image": (call(models.cnn, (1, 3, 3)), r"shape must be .*4x4 or more, got \(1, 3, 3\)"),
    "a flat image": (call(models.cnn, (784,)), r"shape must be .*4x4 or more, got \(784,\)"),
    "a norm": (
        call(models.resnet8, norm="layer"),
        r"norm must be one of batch, group, got 'layer'",
    ),
    "no class of a resnet": (call(models.resnet8, 0), r"classes must hold whole numbers >= 1"),
    "a seed of text": (call(models.mlp, seed="0"), r"seed must be a whole number, got '0'"),
    "one channel of three": (
        call(NORMALIZE, torch.ones(2, 1, 4, 4)),
        r"\[n, 3, ...\].*\[2, 1, 4, 4",
    ),
    "no batch": (call(NORMALIZE, torch.ones(3, 4, 4)), r"batch \[n, 3, ...\].*got \[3, 4, 4\]"),
    "a list of pixels": (call(NORMALIZE, [[1.0]]), r"a must be a tensor, got list"),
    "bytes": (
        call(NORMALIZE, torch.ones(2, 3, 4, 4).byte()),
        r"a must hold floats, got torch.uint8",
    ),
    "an empty batch": (call(NORMALIZE, torch.ones(0, 3, 4, 4)), like([0, 3, 4, 4])),
    "logits of one dimension": (
        call(predict, torch.ones(3)),
        r"logits must be \[n, classes\].*\[3\]",
    ),
    "logits without classes": (call(predict, torch.ones(3, 0)), r"logits must be .*got \[3, 0\]"),
    "a list of logits": (call(predict, [[1.0]]), r"logits must be a tensor, got list"),
    "no logits": (call(predict, torch.ones(0, 3)), like([0], torch.int64)),
    "logits of NaN": (call(predict, torch.ones(1, 3) * NAN), near([-1])),
    "infinite logits": (call(predict, torch.tensor([[0.0, INF, -INF]])), near([1])),
    "equal logits": (call(predict, torch.ones(1, 3)), near([0])),
    "one logit of 0": (call(predict, torch.zeros(1, 1)), near([0])),
}


@rows(GAMES, MODELS)
def test_games_and_models(asked, expected):
    examine(asked, expected)


A, B = torch.linspace(0, 1, 16).reshape(4, 1, 2, 2), torch.tensor([0, 1, 1, 0])
IMAGES, TWO = Images(A, B, ("no", "yes")), ("no", "yes")
EYES = fundus_phantoms("test", n=2, size=16)
DATA = {
    "bytes": (call(Images, A.byte(), B, TWO), r"a must be float .*got torch.uint8"),
    "flat images": (call(Images, A.flatten(1), B, TWO), r"a must be float .*got .*\[4, 4\]"),
    "an array": (call(Images, A.numpy(), B, TWO), r"a must be a tensor, got ndarray"),
    "a list of labels": (call(Images, A, B.tolist(), TWO), r"b must be a tensor, got list"),
    "no values": (call(Images, A.to("meta"), B, TWO), r"a must hold values.*meta"),
    "pixels of 255": (call(Images, A * 255, B, TWO), r"pixels must be in .*255.*: divide"),
    "pixels below 0": (call(Images, A - 0.5, B, TWO), r"pixels must be in \[0, 1\], got \[-0.5"),
    "NaN": (call(Images, A * NAN, B, TWO), r"pixels must be in \[0, 1\], got \[nan"),
    "short labels": (call(Images, A, B.int(), TWO), r"b must be int64 \[4\], got torch.int32"),
    "labels in a column": (
        call(Images, A, B[:, None], TWO),
        r"b must be int64 \[4\], got .*\[4, 1",
    ),
    "too few labels": (call(Images, A, B[:3], TWO), r"b must be int64 \[4\], got .*\[3\]"),
    "a label too large": (call(Images, A, B + 1, TWO), r"labels must be 0 to 1, got 1 to 2"),
    "a label below 0": (call(Images, A, B - 1, TWO), r"labels must be 0 to 1, got -1 to 0"),
    "no class": (call(Images, A, B, ()), r"labels must be .*got 0 to 1: \(\) names the classes"),
    "no image": (call(Images, A[:0], B[:0], TWO), lambda images: len(images) == 0),
    "no entry chosen": (call(IMAGES.__getitem__, []), lambda images: len(images) == 0),
    "one chosen": (call(IMAGES.__getitem__, -1), lambda images: images.a.shape == (1, 1, 2, 2)),
    "a name chosen": (call(IMAGES.__getitem__, "0"), r"index must .*got '0'"),
    "one too many": (
        call(IMAGES.__getitem__, 4),
        Raises(IndexError, r"index must .*4 images.*got 4"),
    ),
    "a mask of floats": (
        call(data.Phantoms, EYES.a, EYES.b, EYES.classes, EYES.mask.float()),
        r"mask must be bool \[2, 16, 16\], got torch.float32",
    ),
    "a mask of another size": (
        call(data.Phantoms, EYES.a, EYES.b, EYES.classes, EYES.mask[:1]),
        r"mask must be bool \[2, 16, 16\], got torch.bool \[1, 16, 16\]",
    ),
    "an unknown split": (call(data.digits, "valid"), r"split must be .*train, test, got 'valid'"),
    "a negative seed": (call(data.digits, seed=-1), r"seed must be >= 0, got -1"),
    "a seed of text": (call(data.digits, seed="0"), r"seed must be a whole number, got '0'"),
    "a split of mnist": (call(data.mnist, "val"), r"split must be one of train, test, got 'val'"),
    "a split of cifar10": (call(data.cifar10, ""), r"split must be one of train, test, got ''"),
    "a split of retina": (call(data.retina, None), r"split must be one of train, val.* got None"),
    "an unknown set": (call(data.checksums, "digits"), r"dataset must be one of .*got 'digits'"),
    "one eye": (call(fundus_phantoms, n=1), r"n must be >= 2, got 1"),
    "half an eye": (call(fundus_phantoms, n=2.5), r"n must be a whole number, got 2.5"),
    "small eyes": (call(fundus_phantoms, size=8), r"size must be >= 16, got 8"),
    "eyes of a seed": (call(fundus_phantoms, seed=-1), r"seed must be >= 0, got -1"),
    "eyes of a split": (call(fundus_phantoms, "val"), r"split must be .*got 'val'"),
}


@rows(DATA)
def test_data(asked, expected):
    examine(asked, expected)


def session(**settings):
    return call(Session, {"model": nn.Linear(2, 1)}, **settings)


def in_folder(function, *arguments, text=None):
    """The function of a path in a new folder, with a file there if there is a text."""

    def ask(folder):
        path = folder / "run.json"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        return function(path, *arguments)

    return call(ask)


ROWS = {"ours": [{"seed": 0, "error": 0.1}, {"seed": 1, "error": 0.3}]}


def kept(results, name="demo"):
    return in_folder(lambda path: records.save(name, {}, results, {}, {}, path.parent))


RUNS = {
    "a precision": (session(precision="float16"), r"precision must be .*got 'float16'"),
    "a negative time": (session(every=-1.0), r"every must be >= 0 seconds, got -1.0"),
    "a time of NaN": (session(every=NAN), r"every must be >= 0 seconds, got nan"),
    "a device": (session(device="gpu"), r"device must be .*got 'gpu'"),
    "the device meta": (session(device="meta"), r"device must be .*got 'meta'"),
    "a seed of text": (session(seed="0"), r"seed must be a whole number, got '0'"),
    "nothing to train": (call(Session, {"model": nn.ReLU()}), r"no parameters to train: give"),
    "no network": (call(Session, {}), r"networks must .*got \{\}"),
    "a damaged checkpoint": (in_folder(checkpoints.load, text="{"), r"cut short.*: delete it"),
    "no checkpoint": (
        in_folder(checkpoints.load),
        Raises(FileNotFoundError, r"run.json"),
    ),
    "a state that is a list": (in_folder(checkpoints.save, [1, 2]), r"state must be .*got list"),
    "an object without a state": (
        call(Checkpoint, "run.pt", {"model": 3}, {}, {}),
        r"model must have state_dict and load_state_dict, got int",
    ),
    "a NumPy generator": (
        call(fingerprints.fingerprint, g=np.random.default_rng(0)),
        r"g is a Generator, whose state .*: draw from a torch.Generator",
    ),
    "uneven rows": (call(processes.local_rows, torch.ones(3)), like([3])),
    "no result": (kept({}), r"needs at least one variant"),
    "a variant without a row": (kept({"ours": []}), r"a row for each of them"),
    "a result of NaN": (
        kept({"ours": [{"seed": 0, "error": NAN}]}),
        r"error must be finite, got nan",
    ),
    "rows of two kinds": (
        kept({"ours": [{"seed": 0, "error": 0.1}, {"seed": 1}]}),
        r"each row of 'ours' must hold .*error.*got",
    ),
    "a result": (kept(ROWS), lambda path: path.exists()),
    "a damaged record": (
        in_folder(lambda path: records.load("run", path.parent), text="{"),
        r"run.json is damaged .*: measure it again",
    ),
    "no record": (in_folder(lambda path: records.load("run", path.parent)), lambda r: r is None),
    "a picture of floats": (call(records.picture, X), r"pixels must be uint8 .*got torch.float32"),
    "a picture of colors": (
        call(records.picture, torch.zeros(2, 2, 3, dtype=torch.uint8)),
        r"pixels must be uint8 \[h, w\], got .*\[2, 2, 3\]",
    ),
    "no picture": (call(records.pixels, "hello"), r"text must be a PNG in base 64, got 'hello'"),
}


@rows(RUNS)
def test_runs(asked, expected, tmp_path):
    if asked.function.__name__ == "ask":
        asked = asked._replace(arguments=(tmp_path,))
    examine(asked, expected)


def right(x):
    return 2 * x


SENTENCE = "A line that climbs from the left to the right."
check = partial(call, exercises.check)
PAGES = {
    "no case": (check(right, right, []), r"cases must be one tuple .*write \(x,\)"),
    "a case that is no tuple": (check(right, right, [1.0]), r"cases must be one tuple .*\(x,\)"),
    "a slip like right": (
        check(right, right, [(1.0,)], slips={"twice": right}),
        r"no case tells the slip 'twice' from right: add",
    ),
    "right is NaN": (check(right, lambda x: NAN, [(1.0,)]), r"'right' must return .*without NaN"),
    "a negative tolerance": (
        check(right, right, [(1.0,)], tolerance=-1.0),
        r"tolerance .*got -1.0",
    ),
    "no answer": (check(None, right, [(1.0,)]), anything),
    "an answer that is a number": (check(3.0, right, [(1.0,)]), anything),
    "an answer of NaN": (check(lambda x: NAN, right, [(1.0,)]), anything),
    "an answer of another shape": (check(lambda x: [x, x], right, [(1.0,)]), anything),
    "an answer that fails": (check(lambda x: 1 / 0, right, [(1.0,)]), anything),
    "an answer in place": (check(lambda v: v.mul_(2), right, [(torch.ones(2),)]), anything),
    "a sealed number": (call(exercises.sealed, 3), r"check must be a function .*got 3"),
    "no alt text": (call(plots.checked_alt, ""), r"alt must be a sentence .*got ''"),
    "a word": (call(plots.checked_alt, "A line"), r"alt must be a sentence .*got 'A line'"),
    "an alt that is no text": (call(plots.checked_alt, None), r"alt must be a sentence .*got None"),
    "a figure without alt": (
        call(plots.show, None, "plot"),
        r"alt must be a sentence .*got 'plot'",
    ),
    "no control": (
        call(interactive.frames, lambda figure: SENTENCE, {}, still=[]),
        r"every control needs choices, got \{\}",
    ),
    "a control without choices": (
        call(interactive.frames, lambda figure: SENTENCE, {"eps": []}, still=[0]),
        r"every control needs choices, got \{'eps': \[\]\}",
    ),
    "another still": (
        call(interactive.frames, lambda figure, i: SENTENCE, {"eps": ["0"]}, still=[1]),
        r"still must be one choice of each of \[1\], got \[1\]",
    ),
    "a sentence that is a number": (call(say, 5), r"text must be .*got 5"),
    "the code of a number": (call(source, 5), r"function.* must be .*got 5"),
    "the code of torch": (call(source, torch.ones), r"function.* must be .*got <built-in"),
    "a digit in a row": (
        call(plots.digit, SimpleNamespace(), torch.zeros(784)),
        r"a must be .*\[1, h, w\], got \[784\]",
    ),
    "one run": (call(plots.spread, None, [0, 1], torch.zeros(2), "x"), r"runs must be .*got \[2\]"),
}


@rows(PAGES)
def test_pages(asked, expected, capsys):
    examine(asked, expected)
    fine = asked.function is exercises.check and expected is anything
    assert bool(capsys.readouterr().out) == fine


def test_a_page_on_an_unknown_device(monkeypatch):
    for name in ("gpu", "meta"):
        monkeypatch.setenv("COURSE_DEVICE", name)
        with pytest.raises(
            RuntimeError, match=rf"COURSE_DEVICE={name} is not at hand .*; unset it"
        ):
            setup()
