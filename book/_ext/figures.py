"""A figure's alt text travels in its output's metadata (plots.show); a picture needs one."""

from myst_nb.core.render import NbElementRenderer
from sphinx.util import logging

logger = logging.getLogger(__name__)
render_image = NbElementRenderer.render_image


def render_image_with_alt(self, data):
    images = render_image(self, data)
    alt = data.output_metadata.get(data.mime_type, {}).get("alt", "")
    if not alt:
        logger.warning("a figure without alt text: show it by plots.show", location=data.line)
    for image in images:
        image["alt"] = alt
    return images


def setup(app):
    NbElementRenderer.render_image = render_image_with_alt
    return {"parallel_read_safe": True, "parallel_write_safe": True}
