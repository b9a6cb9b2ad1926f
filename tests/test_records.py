"""lib.records and experiments: what is kept, and that no record is older than its settings."""

import json
import statistics

import pytest

from experiments import __main__ as command
from experiments import wgan_points
from lib import records

RESULTS = {"a": [{"seed": 0, "w1": 0.5, "found": 8}, {"seed": 1, "w1": 0.25, "found": 7}]}


def test_what_is_saved_is_loaded_with_its_summary(tmp_path):
    path = records.save("some-run", {"steps": 3}, RESULTS, tmp_path / "new")
    assert [file.name for file in path.parent.iterdir()] == ["some-run.json"]
    record = records.load("some-run", tmp_path / "new")
    assert record["results"] == RESULTS and record["settings"] == {"steps": 3}
    assert record["summary"]["a"]["w1"] == {
        "mean": 0.375,
        "deviation": statistics.stdev([0.5, 0.25]),
    }
    assert "seed" not in record["summary"]["a"]
    assert {"processor", "cores", "python", "torch"} <= record["machine"].keys()
    assert record["commit"]


def test_what_was_not_measured_is_none(tmp_path):
    assert records.load("nothing", tmp_path) is None


def test_nothing_is_left_where_a_record_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="at least one variant"):
        records.save("x", {}, {}, tmp_path)
    with pytest.raises(ValueError, match="at least one variant"):
        records.save("x", {}, {"a": []}, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.save("x", {}, {"a": [{"seed": 0, "w1": float("nan")}]}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(records.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_record_is_whole_and_its_summary_follows_from_its_results(path, tmp_path):
    record = json.loads(path.read_text())
    assert record["name"] == path.stem and path.stem in command.NAMES
    records.save(path.stem, record["settings"], record["results"], tmp_path)
    again = records.load(path.stem, tmp_path)
    assert again["summary"] == record["summary"]
    assert record.keys() == again.keys() and record["machine"].keys() >= {"processor", "torch"}


def test_the_record_of_the_points_has_the_settings_of_the_code_and_enough_seeds():
    record = records.load("wgan-points")
    settings = record["settings"]
    assert settings == wgan_points.settings(settings["seeds"], settings["device"])
    assert record["results"].keys() == {*wgan_points.GAMES, "target"}
    for rows in record["results"].values():
        assert [row["seed"] for row in rows] == list(range(settings["seeds"]))
    assert settings["seeds"] >= 3


def test_an_experiment_writes_its_record_and_goes_on_from_its_checkpoints(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(wgan_points, "SHARED", {"steps": 2, "critic_steps": 1, "batch_size": 8})
    monkeypatch.setattr(wgan_points, "SAMPLES", 40)
    monkeypatch.setattr(wgan_points, "HIDDEN", (8,))
    folders = ["--out", str(tmp_path / "records"), "--runs", str(tmp_path / "runs")]
    command.main(["wgan-points", "--seeds", "2", *folders])
    assert "The record is at" in capsys.readouterr().out
    record = records.load("wgan-points", tmp_path / "records")
    assert [row["seed"] for row in record["results"]["clip"]] == [0, 1]
    kept = sorted((tmp_path / "runs" / "wgan-points").iterdir())
    assert len(kept) == 8
    kept[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in kept[1:]}
    command.main(["wgan-points", "--seeds", "2", *folders])
    assert records.load("wgan-points", tmp_path / "records")["results"] == record["results"]
    assert times.keys() <= set((tmp_path / "runs" / "wgan-points").iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["wgan-points", "--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["wgan-points", "--device", "nowhere"], "--device nowhere is not at hand"),
    ],
)
def test_bad_arguments_end_at_once_with_a_line(arguments, said, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err
