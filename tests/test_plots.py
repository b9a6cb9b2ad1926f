"""Figures, sentences, code: no picture without alt text, colors apart for the color-blind."""

import base64
import functools
import io
import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.colors
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from lib.checks import checked_by
from lib.pages import plots, say, setup, source
from lib.pages._alt_text import AltText


@pytest.fixture
def shown(monkeypatch):
    """What reached IPython's display."""
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: calls.append((a, k)))
    return calls


@pytest.fixture(autouse=True)
def style():
    setup()
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "alt",
    ["", "figure", "A loss curve", "   Short one.   ", "Nineteen characters", "A line of text..."],
)
def test_a_figure_without_a_sentence_is_refused(alt, shown):
    with pytest.raises(ValueError, match="alt must be a sentence"):
        plots.show(plt.figure(), alt)
    assert not shown


def test_a_figure_carries_its_alt_text_and_is_closed(shown):
    plots.show(plt.figure(), "Three loss curves\n  that fall with the margin.")
    [((data,), options)] = shown
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == "Three loss curves that fall with the margin."
    assert options["metadata"]["image/png"]["alt"] == data["text/plain"]
    assert not plt.get_fignums()


def test_an_alt_text_of_twenty_characters_is_a_sentence():
    assert plots.checked_alt("A line from 0 to 10.") == "A line from 0 to 10."
    with pytest.raises(ValueError, match="alt must be a sentence"):
        plots.checked_alt("A line from 0 to 1.")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data["image/png"])).convert("RGB"))


def test_a_figure_is_1296_pixels_wide_on_white_with_two_spines_and_a_faint_grid(shown):
    figure, axes = plt.subplots()
    lines = axes.plot(np.zeros((2, 3)))
    axes.set_title("left")
    assert [line.get_color() for line in lines] == [plots.BLUE, plots.ORANGE, plots.GREEN]
    assert {line.get_linewidth() for line in lines} == {2}
    assert [axes.spines[side].get_visible() for side in ("left", "bottom")] == [True, True]
    assert [axes.spines[side].get_visible() for side in ("right", "top")] == [False, False]
    assert axes.title.get_text() == "" and axes._left_title.get_text() == "left"
    [grid, *_] = axes.get_xgridlines()
    assert grid.get_visible() and grid.get_alpha() == 0.25
    assert not axes.legend(["a"]).get_frame_on()
    assert figure.get_constrained_layout()
    plots.show(figure, "Three flat lines that say nothing at all.")
    [((data,), options)] = shown
    picture = pixels(data)
    assert picture.shape == (576, 1296, 3) and (picture[:3] == 255).all()
    assert options["raw"] and b"Software" not in data["image/png"]


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([0, 1], [1, 0])
        plots.show(figure, "A straight line that falls from one to zero.")
    assert shown[0][0][0] == shown[1][0][0]


def lab(linear):
    """CIE L*a*b* of a color with linear sRGB channels [3], white point D65."""
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ np.clip(linear, 0, 1)
        / [0.9505, 1, 1.089]
    )
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", ["protanopia", "deuteranopia"])
def test_colors_stay_apart_for_the_color_blind(kind):
    # Viénot, Brettel and Mollon (1999): a linear map of the linear channels.
    confuse = {
        "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }[kind]
    seen = {}
    for color in (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.BLACK):
        srgb = np.array(matplotlib.colors.to_rgb(color))
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen[color] = lab(np.array(confuse) @ linear)
    for (one, x), (other, y) in itertools.combinations(seen.items(), 2):
        assert np.linalg.norm(x - y) > 10, f"{one} and {other} look alike"


def test_the_band_spans_the_runs():
    _, axes = plt.subplots()
    runs = torch.tensor([[0.0, 1.0], [2.0, 5.0], [1.0, 3.0]])
    plots.spread(axes, [0, 1], runs, "loss")
    assert axes.lines[0].get_ydata().tolist() == [1.0, 3.0]
    band = axes.collections[0].get_paths()[0].vertices
    assert {0.0, 1.0, 2.0, 5.0} <= set(band[:, 1])


def test_what_a_reader_plots_after_the_first_cell_is_shown():
    """In a kernel as Jupyter starts it: by plt.show(), by a figure left open, by one as a value."""
    cells = [
        "import matplotlib.pyplot as plt\nfrom lib.pages import plots, setup\ndevice = setup()",
        "plt.plot([0, 1], [1, 0])\nplt.show()",
        "figure, axes = plt.subplots()\naxes.plot([0, 1])",
        "plt.close(figure)\nfigure",
        "figure, axes = plt.subplots()\nplots.show(figure, 'An empty frame from zero to one.')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    pictures = [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
    ]
    assert pictures == [0, 1, 1, 1, 1]


def test_a_page_starts_on_the_cpu_with_one_thread(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    assert setup() == torch.device("cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["nonsense", "mps:99", "meta"])
def test_a_device_that_is_absent_is_named(name, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", name)
    with pytest.raises(RuntimeError, match=f"COURSE_DEVICE={name} is not at hand"):
        setup()


def test_a_picture_keeps_its_alt_text_on_the_built_page_and_one_without_is_warned_of(tmp_path):
    """Through myst-nb's entry point, which the installed package declares."""
    picture = base64.b64encode(b"\x89PNG").decode()
    alts = ["A line that falls from one to zero.", ""]
    cells = [nbformat.v4.new_markdown_cell("# Page")]
    for alt in alts:
        metadata = {"image/png": {"alt": alt}} if alt else {}
        shown = nbformat.v4.new_output("display_data", {"image/png": picture}, metadata=metadata)
        cells.append(nbformat.v4.new_code_cell("1", execution_count=1, outputs=[shown]))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "index.ipynb")
    options = ["-q", "-C", "-D", "extensions=myst_nb", "-D", "nb_execution_mode=off"]
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, tmp_path, tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<img alt="([^"]*)" src="_images', page) == alts
    assert run.stderr.count("a figure without alt text: show it by plots.show") == 1


def test_a_digit_is_drawn_gray_and_an_image_in_color_in_its_colors():
    figure, axes = plt.subplots(1, 2)
    color = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for panel, image in zip(axes, (color[:1], color), strict=True):
        plots.digit(panel, image)
    gray, shown = (panel.images[0].get_array() for panel in axes)
    assert torch.equal(torch.as_tensor(gray.data), color[0])
    assert torch.equal(torch.as_tensor(shown.data), color.permute(1, 2, 0))
    for panel in axes:
        image = panel.images[0]
        assert image.get_clim() == (0, 1) and image.cmap.name == "gray"
        assert image.get_interpolation() == "nearest"
        assert panel.get_xticks().size == panel.get_yticks().size == 0
        assert all(panel.spines[side].get_visible() for side in ("left", "right", "top", "bottom"))
    for wrong, limit in ((color[:2], 0), (color.permute(1, 2, 0), 0), (color[0], 0), (color, 0.1)):
        with pytest.raises(ValueError, match=r"a must be one image, .*\[1, h, w\], got"):
            plots.digit(axes[0], wrong, limit=limit)
    plt.close(figure)


def test_a_perturbation_is_blue_where_it_darkens_white_at_zero_and_red_where_it_brightens():
    axes = plt.figure().subplots()
    move = torch.tensor([[[-0.1, 0.0, 0.1]]], requires_grad=True)
    plots.digit(axes, move, "the attack", color=plots.ORANGE, limit=0.1)
    [image] = axes.images
    (r0, _, b0), white, (r2, _, b2) = image.to_rgba(image.get_array())[0, :, :3]
    assert b0 > 2 * r0 and r2 > 2 * b2 and white.min() > 0.95
    assert image.get_clim() == (-0.1, 0.1)
    assert axes.get_title() == "the attack" and axes.title.get_color() == plots.ORANGE
    plots.digit(axes, move.detach() + 0.5)
    assert axes.get_title() == "" and axes.title.get_color() == plots.BLACK


def test_the_band_has_the_color_of_its_line_and_needs_a_value_at_each_point():
    _, axes = plt.subplots()
    plots.spread(axes, [0, 1], torch.rand(3, 2), "loss", color=plots.PURPLE, linestyle="--")
    [line], [band] = axes.lines, axes.collections
    assert line.get_label() == "loss" and line.get_linestyle() == "--"
    color = matplotlib.colors.to_rgb(plots.PURPLE)
    assert line.get_color() == plots.PURPLE and tuple(band.get_facecolor()[0]) == (*color, 0.2)
    for runs in (torch.rand(3, 3), torch.rand(2), torch.rand(1, 3, 2)):
        with pytest.raises(ValueError, match=r"runs must be \[seeds, 2\], got"):
            plots.spread(axes, [0, 1], runs, "loss")


class Renderer:
    """What the entry point uses of myst-nb's renderer: it makes nodes and warns."""

    def __init__(self):
        self.warnings, self.logger = [], self

    def render_image(self, data):
        return [{"mime": data.mime_type}, {"mime": "a second node"}]

    def warning(self, text, **where):
        self.warnings.append((text, where))


@pytest.mark.parametrize(
    ("metadata", "alt", "warned"),
    [
        ({"image/png": {"alt": "A line that falls."}}, "A line that falls.", 0),
        ({"image/png": {}}, "", 1),
        ({"image/webp": {"alt": "Of another picture."}}, "", 1),
        ({}, "", 1),
    ],
)
def test_every_node_of_a_picture_gets_the_alt_text_of_its_own_type(metadata, alt, warned):
    renderer = Renderer()
    output = SimpleNamespace(mime_type="image/png", output_metadata=metadata, line=7)
    nodes = AltText.handle_mime(renderer, output, inline=False)
    assert [node["alt"] for node in nodes] == [alt, alt]
    assert len(renderer.warnings) == warned
    for text, where in renderer.warnings:
        assert "without alt text" in text and where == {"subtype": "alt", "line": 7}


def test_what_is_no_picture_is_left_to_myst_nb():
    output = SimpleNamespace(mime_type="text/plain", output_metadata={}, line=1)
    assert AltText.handle_mime(Renderer(), output, inline=False) is None


# Sentences and code.


@pytest.fixture
def said(shown):
    """The Markdown of the only thing displayed."""
    return lambda: shown[0][0][0].data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One sentence\nin two lines.", "One sentence in two lines."),
        ("Two\n\nparagraphs\nof text.", "Two\n\nparagraphs\nof text."),
        ("| a |\n| - |\n| 1 |", "| a |\n| - |\n| 1 |"),
    ],
)
def test_lines_of_a_sentence_are_joined_and_those_of_paragraphs_and_tables_are_not(
    text, expected, said
):
    say(text)
    assert said() == expected


def bare(x):
    return x + 1


def documented(x):
    """One line.

    And more.
    """
    y = x
    return y + 2


def many(
    x,
    *,
    y=1,
):
    """A signature of several lines."""
    return x + y


def test_code_is_shown_from_its_first_line_to_its_last_without_docstring_and_decorators(said):
    source(bare, documented, many, checked_by(lambda x: None)(documented), functools.cache(bare))
    code = said().removeprefix("```python\n").removesuffix("\n```")
    functions = code.split("\n\n\n")
    second = "def documented(x):\n    y = x\n    return y + 2"
    assert functions[:2] == ["def bare(x):\n    return x + 1", second]
    assert functions[2] == "def many(\n    x,\n    *,\n    y=1,\n):\n    return x + y"
    assert functions[3:] == [second, functions[0]]
    assert said().startswith("```python\n") and said().endswith("\n```")


@pytest.mark.parametrize("thing", [len, 3, "bare"])
def test_code_that_is_not_python_s_is_refused(thing, shown):
    with pytest.raises(ValueError, match="functions must be written in Python, got"):
        source(bare, thing)
    assert not shown
