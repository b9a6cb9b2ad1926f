"""lib.records: what is kept, and that every record in the project is whole."""

import base64
import json
import math
import os
import platform
import re
import statistics
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from experiments import __main__ as command
from lib.runs import records

RESULTS = {"a": [{"seed": 0, "w1": 0.5, "found": 8}, {"seed": 1, "w1": 0.25, "found": 7}]}


def test_what_is_saved_is_loaded_with_its_summary(tmp_path):
    path = records.save(
        "some-run", {"steps": 3}, RESULTS, {"a.gz": "0f"}, records.origin(), tmp_path / "new"
    )
    assert [file.name for file in path.parent.iterdir()] == ["some-run.json"]
    record = records.load("some-run", tmp_path / "new")
    assert record["results"] == RESULTS and record["settings"] == {"steps": 3}
    assert record["data"] == {"a.gz": "0f"}
    assert record["summary"]["a"]["w1"] == {
        "mean": 0.375,
        "deviation": statistics.stdev([0.5, 0.25]),
    }
    assert "seed" not in record["summary"]["a"]
    assert {"processor", "cores", "python", "torch"} <= record["machine"].keys()
    assert record["commit"] and record["processes"] == 1
    lines = path.read_text(encoding="utf-8").split("\n")  # a number a line, for a reader of diffs
    assert lines[:2] == ["{", '  "name": "some-run",'] and lines[-2:] == ["}", ""]


def test_one_seed_has_no_deviation_and_texts_and_the_seed_are_not_summed_up(tmp_path):
    rows = {"a": [{"seed": 3, "w1": 0.5, "found": 8, "note": "slow"}]}
    records.save("x", {}, rows, {}, {}, tmp_path)
    summary = records.load("x", tmp_path)["summary"]
    assert summary == {
        "a": {"w1": {"mean": 0.5, "deviation": 0.0}, "found": {"mean": 8.0, "deviation": 0.0}}
    }


def test_a_row_without_a_number_of_the_first_is_refused_and_more_is_not(tmp_path):
    first, more = (
        {"seed": 0, "w1": 0.5, "found": 8, "note": "x"},
        {"seed": 1, "w1": 1.0, "found": 1},
    )
    records.save("x", {}, {"a": [first, more | {"extra": 1}]}, {}, {}, tmp_path)
    for name in ("w1", "found"):
        row = {key: value for key, value in more.items() if key != name}
        with pytest.raises(ValueError, match=rf"each row of 'b' must hold \['{name}'\]"):
            records.save("x", {}, {"a": [first], "b": [first, row]}, {}, {}, tmp_path)
    for wrong in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"extra must be finite, got .* in 'a'"):
            records.save("x", {}, {"a": [first, more | {"extra": wrong}]}, {}, {}, tmp_path)


def test_pictures_are_gray_bytes_and_come_back(tmp_path):
    gray = torch.randint(256, (5, 7), generator=torch.Generator().manual_seed(0)).byte()
    text = records.picture(gray)
    assert torch.equal(records.pixels(text), gray)
    assert base64.b64decode(text).startswith(b"\x89PNG")
    for wrong in (gray.float(), gray[None], gray[0]):
        with pytest.raises(ValueError, match=r"pixels must be uint8 \[h, w\], got torch"):
            records.picture(wrong)
    for wrong in ("no base 64!", base64.b64encode(b"no picture").decode()):
        with pytest.raises(ValueError, match=f"text must be a PNG in base 64, got '{wrong[:9]}"):
            records.pixels(wrong)


def test_the_machine_is_the_one_that_python_and_linux_describe(monkeypatch):
    machine = records.machine()
    assert machine["cores"] == os.cpu_count() and machine["system"] == platform.system()
    assert machine["python"] == platform.python_version()
    assert machine["torch"] == torch.__version__ and machine["numpy"] == np.__version__
    assert ("accelerator" in machine) == torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert records.machine()["accelerator"] == "a GPU"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "processor : 0\nmodel name\t: A: fast one \nflags : x\nmodel name\t: other\n",
            "A: fast one",
        ),
        ("processor : 0\n", platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_the_processor_has_the_name_that_linux_gives_it_or_its_kind(said, expected, monkeypatch):
    def read(path, encoding):
        if said is None:
            raise FileNotFoundError
        return said

    monkeypatch.setattr(Path, "read_text", read)
    found = records.machine()["processor"]
    monkeypatch.undo()
    assert found == expected


def test_a_package_that_is_missing_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(records, "PACKAGES", ("torch", "no-such-package"))
    machine = records.machine()
    assert machine["no-such-package"] == "not installed" and machine["torch"]


def test_what_was_not_measured_is_none(tmp_path):
    assert records.load("nothing", tmp_path) is None


def test_nothing_is_left_where_a_record_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="at least one variant"):
        records.save("x", {}, {}, {}, {}, tmp_path)
    with pytest.raises(ValueError, match="at least one variant"):
        records.save("x", {}, {"a": []}, {}, {}, tmp_path)
    with pytest.raises(ValueError, match="w1 must be finite, got nan"):
        records.save("x", {}, {"a": [{"seed": 0, "w1": float("nan")}]}, {}, {}, tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):  # outside of the rows too
        records.save("x", {"lr": math.nan}, {"a": [{"seed": 0, "w1": 0.5}]}, {}, {}, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


PATHS = sorted(set(records.FOLDER.glob("*.json")) - {records.FOLDER / "schema.json"})
SCHEMA = Draft202012Validator(
    json.loads((records.FOLDER / "schema.json").read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_record_is_as_the_schema_says(path):
    SCHEMA.validate(json.loads(path.read_text(encoding="utf-8")))


def test_what_is_saved_is_as_the_schema_says_and_slips_are_not(tmp_path):
    rows = {"a": [{"seed": 0, "w1": 0.5, "seconds": 1.5}, {"seed": 1, "w1": 0.25, "seconds": 1}]}
    settings = {"seeds": 2, "device": "cpu"}
    records.save("some-run", settings, rows, {"a.gz": "0f" * 32}, records.origin(), tmp_path)
    record = records.load("some-run", tmp_path)
    SCHEMA.validate(record)
    assert record["format"] == records.FORMAT
    slips = [
        {"format": 2},
        {"name": "Some Run"},
        {"settings": {"seeds": 0, "device": "cpu"}},
        {"settings": {"seeds": 1}},
        {"results": {}},
        {"results": {"a": []}},
        {"results": {"a": [{"w1": 0.5, "seconds": 1.5}]}},
        {"results": {"a": [{"seed": 0, "w1": None, "seconds": 1.5}]}},
        {"summary": {"a": {"w1": {"mean": 0.5}}}},
        {"summary": {"a": {"w1": {"mean": 0.5, "deviation": -1}}}},
        {"data": {"a.gz": "0f"}},
        {"machine": {"processor": "x"}},
        {"processes": 0},
        {"commit": ""},
        {"note": "hand-made"},
    ]
    assert all(not SCHEMA.is_valid(record | slip) for slip in slips)
    assert all(not SCHEMA.is_valid({k: v for k, v in record.items() if k != key}) for key in record)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"name": "old", "results": {}}', r"old\.json must have format 1, got None: measure it"),
        ('{"name": "old", "format": 9}', r"must have format 1, got 9.*python -m experiments old"),
        ("[]", "must have format 1, got None"),
        ('{"name": "ol', r"old\.json is damaged \(Unterminated string.*measure it again"),
    ],
)
def test_a_damaged_or_older_record_is_named_with_what_to_do(text, said, tmp_path):
    (tmp_path / "old.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        records.load("old", tmp_path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_record_is_whole_and_its_summary_follows_from_its_results(path, tmp_path):
    record = json.loads(path.read_text(encoding="utf-8"))
    module = import_module(f"experiments.{command.MODULES[path.stem]}")
    assert record["data"] == module.Config().checksums()
    assert record["name"] == path.stem and path.stem in command.MODULES
    records.save(
        path.stem, record["settings"], record["results"], record["data"], records.origin(), tmp_path
    )
    again = records.load(path.stem, tmp_path)
    assert again["summary"] == record["summary"]
    assert record.keys() == again.keys() and record["machine"].keys() >= {"processor", "torch"}


def test_a_commit_is_dirty_if_other_files_than_records_differ(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "records"
    folder.mkdir(parents=True)
    monkeypatch.setattr(records, "FOLDER", folder)
    assert records._commit() == "unknown"
    for file in (folder / "a.json", tmp_path / "code.py"):
        file.write_text("1", encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    clean = records._commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (folder / "a.json").write_text("2", encoding="utf-8")
    (tmp_path / "new.txt").write_text("not tracked", encoding="utf-8")
    assert records._commit() == clean
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert records._commit() == f"{clean}-dirty"
