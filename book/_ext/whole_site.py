"""The site asks for nothing outside itself: MathJax comes along, thebe's scripts stay out.

And screen readers can read the list of references.
"""

import importlib.util
import shutil
from pathlib import Path


def copy_mathjax(app, exception):
    if exception or app.builder.format != "html":
        return
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    source, target = package / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    for part in ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts"):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, target / part)


def drop_thebe(app, pagename, templatename, context, doctree):
    def is_thebe(script):
        return "thebe" in f"{getattr(script, 'filename', script)} {vars(script)}".lower()

    for files in ("script_files", "css_files"):
        context[files] = [f for f in context.get(files, []) if not is_thebe(f)]


def mend_lists(app, pagename, templatename, context, doctree):
    """docutils calls the references a list, whose entries by their own role are no list items."""
    if "body" in context:
        context["body"] = context["body"].replace(' role="list" class="citation-list"', "")


def setup(app):
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
