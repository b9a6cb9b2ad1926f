"""JupyterLab as `make lab` starts it: saving a page stores what its reader changed, and no more.

JupyterLab also writes which Python it ran and what the kernel is called on this machine, and both
twins would differ from the repository's. Before a page is saved, its own header comes back.
"""

import re

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HEADER = "kernelspec:\n" + "".join(f"  {name}: {value}\n" for name, value in KERNEL.items())


def keep_header(model, path, **_):
    """A hook of jupyter_server: changes what is about to be written to a page's .ipynb or .md."""
    if not path.startswith("lecture11/"):
        return
    if model["type"] == "notebook":
        model["content"]["metadata"].pop("language_info", None)
        model["content"]["metadata"]["kernelspec"] = dict(KERNEL)
    elif path.endswith(".md") and model.get("content"):
        model["content"] = re.sub(r"kernelspec:\n(  .*\n)+", HEADER, model["content"], count=1)


c = get_config()  # noqa: F821 - Jupyter's own
c.FileContentsManager.pre_save_hook = keep_header
