"""A page in one file: styles, scripts and data inside, nothing fetched from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastvq.models.files import replacing

_HERE = Path(__file__).parent
# The browser itself refuses whatever would leave the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def escape(text: object) -> str:
    """The text of any value, safe between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def json_script(value: Any, name: str) -> str:
    """A script element that carries data: ``</script>`` and ``<!--`` inside strings cannot end it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def page(title: str, body: str, *, styles: Sequence[str | Path] = (), scripts: Sequence[str | Path] = ()) -> str:
    """A complete HTML document.

    Args:
        title: Plain text; escaped here.
        body: HTML, already escaped.
        styles: Names of style sheets beside this module, or paths of others, in order.
        scripts: Names of scripts beside this module, or paths of others, run after the body.
    """
    css = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", *styles))
    code = "".join(f"<script>\n{(_HERE / name).read_text(encoding='utf-8')}</script>\n" for name in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}\n{code}</body>\n</html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Writes the document in UTF-8, whole or not at all.

    Raises:
        UserError: the file system refuses.
    """
    with replacing(path) as temporary:
        # Paths in the command may hold bytes that are no UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
