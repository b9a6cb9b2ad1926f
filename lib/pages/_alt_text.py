"""From a notebook to its page, a picture keeps its alt text: for myst-nb, which asks by name.

pyproject.toml names it in the entry point group ``myst_nb.mime_renderers``.
"""

from __future__ import annotations

from typing import Any


class AltText:
    """Images get the alt text that ``plots.show`` put into their output's metadata."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """The nodes of an image; None for what is none. A picture without alt text is warned of."""
        if not data.mime_type.startswith("image/"):
            return None
        alt = data.output_metadata.get(data.mime_type, {}).get("alt", "")
        if not alt:
            said = "a figure without alt text: show it by plots.show"
            renderer.logger.warning(said, subtype="alt", line=data.line)
        images = renderer.render_image(data)
        for image in images:
            image["alt"] = alt
        return images
