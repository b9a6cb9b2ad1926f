"""Figures that answer: a few frames, and native controls that choose one of them.

Every frame is computed by the library and drawn by matplotlib when the page is executed; the script
only swaps pictures. It works without a server or a network, by mouse, touch and keyboard. Without
scripts, and in print, the figure shows its most telling frame.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from lib.pages.plots import checked_alt

# Frames are numbered with the last control counting fastest; a chosen one's alt text is announced.
SCRIPT = """{
const figure = document.currentScript.parentElement, image = figure.querySelector("img");
const {frames, sizes, names, still} = JSON.parse(figure.querySelector("script").textContent);
const controls = [...figure.querySelectorAll("input, select")];
const show = i => {
  [image.src, image.alt] = frames[i];
  figure.querySelector("output").value = names[controls[0].value];
  controls[0].setAttribute("aria-valuetext", names[controls[0].value] + ". " + image.alt);
};
const chosen = () =>
  controls.reduce((i, c, k) => i * sizes[k] + Number(c.selectedIndex ?? c.value), 0);
frames[still][0] = image.src;
controls.forEach(c => c.addEventListener("input", () => show(chosen())));
addEventListener("beforeprint", () => [image.src, image.alt] = frames[still]);
addEventListener("afterprint", () => show(chosen()));
figure.querySelector("figcaption").hidden = false;
}"""


def frames(
    draw: Callable[..., str],
    controls: Mapping[str, Sequence[str]],
    *,
    still: Sequence[int],
    figsize: tuple[float, float] = (7.2, 3.2),
) -> None:
    """Display a figure whose frame the reader chooses, by a slider and, if need be, menus.

    draw: ``draw(figure, i, j, ...)`` draws into an empty figure what belongs to the i-th choice of
    the first control, the j-th of the second, ..., and returns its alt text, a sentence.
    controls: the label of each control, and what its choices are called; the first is the slider.
    still: the choices of the frame that is shown first, and in print. figsize: in inches.

    The output's plain text is what the frames say, so that a changed number in it shows in the
    checks. Raises ValueError for no choices, a still that is none of them, and an alt text that is
    no sentence.

    >>> def draw(figure, i):
    ...     figure.subplots().plot([0, i], [0, 1])
    ...     return f"A line from the origin to the point ({i}, 1)."
    >>> frames(draw, {"end": ["0", "1", "2"]}, still=[1])  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    sizes = [len(choices) for choices in controls.values()]
    if not sizes or not all(sizes):
        raise ValueError(f"every control needs choices, got {dict(controls)}")
    if len(still) != len(sizes) or not all(0 <= i < n for i, n in zip(still, sizes, strict=True)):
        raise ValueError(f"still must be one choice of each of {sizes}, got {list(still)}")
    drawn = []
    for chosen in itertools.product(*map(range, sizes)):
        figure, buffer = plt.figure(figsize=figsize), io.BytesIO()
        alt = checked_alt(draw(figure, *chosen))
        figure.savefig(buffer, format="webp", dpi=150, pil_kwargs={"quality": 80, "method": 2})
        plt.close(figure)
        picture = base64.b64encode(buffer.getvalue()).decode()
        drawn.append([f"data:image/webp;base64,{picture}", alt])
    first = sum(i * math.prod(sizes[k + 1 :]) for k, i in enumerate(still))
    said = "\n".join(alt for _, alt in drawn)
    output = {"text/html": _html(drawn, controls, still, first), "text/plain": said}
    display(output, raw=True)


def _html(
    drawn: list[list[str]], controls: Mapping[str, Sequence[str]], still: Sequence[int], first: int
) -> str:
    """The still, the controls (hidden without scripts), the other frames, and the script."""
    (label, names), *menus = controls.items()
    (source, alt), now = drawn[first], names[still[0]]
    parts = [
        f'<label>{escape(label)} <input type="range" min="0" max="{len(names) - 1}" '
        f'value="{still[0]}" aria-valuetext="{escape(f"{now}. {alt}")}"></label>',
        f"<output>{escape(now)}</output>",
    ]
    for (name, choices), k in zip(menus, still[1:], strict=True):
        options = [f"<option{' selected' * (i == k)}>{escape(c)}" for i, c in enumerate(choices)]
        parts.append(f"<label>{escape(name)} <select>{''.join(options)}</select></label>")
    listed = [["" if i == first else picture, text] for i, (picture, text) in enumerate(drawn)]
    sizes = [len(choices) for choices in controls.values()]
    state = {"frames": listed, "sizes": sizes, "names": list(names), "still": first}
    data = json.dumps(state).replace("<", r"\u003c")
    return (
        f'<figure class="frames"><img src="{source}" alt="{escape(alt)}">'
        f"<figcaption hidden>{' '.join(parts)}</figcaption>"
        f'<script type="application/json">{data}</script><script>{SCRIPT}</script></figure>'
    )
