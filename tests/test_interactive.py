"""lib.pages.interactive: what a figure's output holds; the browser's side is in test_site."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lib.pages import interactive


@pytest.fixture
def shown(monkeypatch):
    """What is displayed."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    return outputs


def shade(figure, i, j):
    figure.patch.set_facecolor((i / 2, j / 4, 0.5))
    return f'A field of red {i} and "green" {j} < 4.'


def drawn(shown, still=(1, 2)):
    interactive.frames(
        shade, {"red": ["0", "½", "1"], "green": list("abcd")}, still=still, figsize=(1, 1)
    )
    [data] = shown
    return data["text/html"], data["text/plain"]


def state(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


def test_every_frame_is_the_picture_of_its_choices(shown):
    text, _ = drawn(shown)
    found = state(text)
    assert found["sizes"] == [3, 4] and found["names"] == ["0", "½", "1"]
    assert len(found["frames"]) == 12 and found["still"] == 1 * 4 + 2
    first = re.search(r'<img src="([^"]+)"', text)[1]
    for i in range(3):
        for j in range(4):
            source, alt = found["frames"][4 * i + j]
            assert alt == f'A field of red {i} and "green" {j} < 4.'
            address = source or first  # the still's picture is in the image
            assert bool(source) == ((i, j) != (1, 2))
            raw = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
            color = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))[75, 75] / 255
            assert np.allclose(color, (i / 2, j / 4, 0.5), atol=0.03)


def test_the_still_is_what_is_seen_and_said_without_scripts(shown):
    text, plain = drawn(shown)
    alt = 'A field of red 1 and "green" 2 < 4.'
    assert html.unescape(re.search(r'alt="([^"]*)"', text)[1]) == alt
    assert "<figcaption hidden>" in text  # the controls come with the script
    assert html.unescape(re.search(r'aria-valuetext="([^"]*)"', text)[1]) == f"½. {alt}"
    assert 'min="0" max="2" value="1"' in text and "<option selected>c" in text
    assert plain.split("\n")[6] == alt and len(plain.split("\n")) == 12


def test_pictures_are_1080_pixels_wide_and_one_control_has_no_menu(shown):
    interactive.frames(
        lambda figure, i: f"An empty field, number {i}.", {"step": ["0", "1"]}, still=[1]
    )
    text = shown[0]["text/html"]
    raw = base64.b64decode(re.search(r'<img src="data:image/webp;base64,([^"]+)"', text)[1])
    assert Image.open(io.BytesIO(raw)).size == (1080, 480)
    assert "<select>" not in text and text.count("<label>") == 1 and "<output>1</output>" in text
    assert state(text)["frames"][1] == ["", "An empty field, number 1."]


@pytest.mark.parametrize(
    ("controls", "still", "problem"),
    [
        ({}, [], "every control needs choices"),
        ({"a": []}, [0], "every control needs choices"),
        ({"a": ["0"]}, [1], r"still must be one choice of each of \[1\], got \[1\]"),
        ({"a": ["0"]}, [-1], "still must be one choice"),
        ({"a": ["0"], "b": ["0"]}, [0], "still must be one choice"),
    ],
)
def test_controls_and_stills_that_make_no_sense_are_refused(controls, still, problem):
    with pytest.raises(ValueError, match=problem):
        interactive.frames(
            lambda figure, *chosen: "A sentence, long enough.", controls, still=still
        )


def test_a_frame_without_a_sentence_is_refused():
    with pytest.raises(ValueError, match="alt must be a sentence"):
        interactive.frames(lambda figure, i: "short", {"a": ["0"]}, still=[0])


def test_a_script_in_an_alt_text_stays_text(shown):
    interactive.frames(
        lambda figure, i: "It says </script><script>alert(1)</script> here.",
        {"a": ["0", "1"]},
        still=[0],
        figsize=(1, 1),
    )
    text = shown[0]["text/html"]
    assert text.count("</script>") == 2 and "<script>alert" not in text
