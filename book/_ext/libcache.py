"""Execute again when lib, a record or the lock changes: the cache looks at a page's cells only."""

import hashlib
from pathlib import Path


def choose_cache(app, config):
    root = Path(app.confdir)
    content = hashlib.sha256()
    read = [*root.glob("lib/**/*.py"), *root.glob("experiments/records/*.json")]
    for path in [*sorted(read), root / "requirements.txt"]:
        content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    config.nb_execution_cache_path = str(
        Path(app.outdir).parent / "outputs" / content.hexdigest()[:16]
    )


def setup(app):
    app.connect("config-inited", choose_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
