"""The front page's cards: ``{chapters}`` shows each chapter's first picture, title and sentence.

Its content has a line ``NN-name: sentence`` for each chapter. The pictures are those that the
chapters' notebooks store, so that cards and chapters cannot drift apart.
"""

import base64
import html
import io
import json
import re
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.util.docutils import SphinxDirective

WIDTH = 440  # of a picture, in pixels


class Chapters(SphinxDirective):
    has_content = True

    def run(self):
        cards = []
        for line in self.content:
            stem, sentence = line.split(": ", 1)
            notebook = Path(self.env.srcdir, "lecture11", f"{stem}.ipynb")
            self.env.note_dependency(str(notebook))
            self.env.note_dependency(str(notebook.with_suffix(".md")))
            title = re.search(r"^# (.*)$", notebook.with_suffix(".md").read_text("utf-8"), re.M)[1]
            picture, alt = next(pictures(json.loads(notebook.read_text("utf-8"))))
            cards.append(
                f'<a class="card-of" href="../lecture11/{stem}.html">'
                f'<img src="data:image/webp;base64,{thumbnail(picture)}" alt="{alt}"'
                f' loading="lazy">'
                f"<strong>{int(stem[:2])}. {html.escape(title)}</strong> "
                f"<span>{html.escape(sentence)}</span></a>"
            )
        return [nodes.raw("", f'<div class="cards-of">{"".join(cards)}</div>', format="html")]


def thumbnail(picture):
    """A picture, small; both as base64."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    small = io.BytesIO()
    image.resize((WIDTH, round(WIDTH * image.height / image.width))).save(small, "webp", quality=75)
    return base64.b64encode(small.getvalue()).decode()


def pictures(notebook):
    """The pictures of all outputs in order, as base64, each with its alt text as HTML."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                alt = output["metadata"]["image/png"]["alt"]
                yield "".join(data["image/png"]), html.escape(alt)
            if "text/html" in data:
                text = "".join(data["text/html"])
                found = re.search(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]+)"', text)
                if found:
                    yield found[1], found[2]


def setup(app):
    app.add_directive("chapters", Chapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
