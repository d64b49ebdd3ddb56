"""The interactive player: a page on which a skeleton moves and can be turned, paused and scrubbed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastvq.models.rendering.page import escape, json_script, page, write_page
from fastvq.models.rendering.scene import Scene, scene_payload, wording_payload

PLAYER_STYLES = ("player.css",)
PLAYER_SCRIPTS = ("figure.js", "player.js")
# Of the page's one element with the words for pose codes.
WORDING = "pose-code-wording"


def legend(behind: str = "") -> str:
    """HTML that says what the colours are and how the player is used.

    Args:
        behind: What the grey body is that stands behind another; empty where there is none.
    """
    ghost = f' <span class="key ghost"></span>{escape(behind)}' if behind else ""
    return (
        '<p class="legend"><span class="key left"></span>left limbs <span class="key right"></span>right limbs '
        f'<span class="key trunk"></span>trunk{ghost}. '
        "Drag to turn, pinch or Ctrl + wheel to zoom, double-click to reset; floor squares are 1 m.</p>"
    )


LEGEND = legend("original, behind its reconstruction")


def player_figure(scenes: Sequence[Scene], name: str, *, tall: bool = False) -> str:
    """HTML of one player with its data; a choice of clips appears when there are several scenes.

    Args:
        scenes: One or more.
        name: Identifier of the data element, unique within the page. Where a scene has pose codes, the page needs
            the element ``WORDING`` once.
        tall: Fills most of the window instead of a card.
    """
    first = scenes[0]
    data = json_script([scene_payload(scene) for scene in scenes], name)
    kind = "player tall" if tall else "player"
    if any(scene.codes is not None for scene in scenes):
        kind += " coded"
    return (
        f'<figure class="{kind}" data-scenes="{escape(name)}">\n<figcaption>'
        f'<span class="clip-name">{escape(first.name)}</span> '
        f'<span class="clip-caption">{escape(first.caption)}</span> '
        f'<span class="clip-note">{escape(first.note)}</span></figcaption>\n'
        f"<noscript><p>The moving skeletons need JavaScript.</p></noscript>\n{data}\n</figure>"
    )


def write_player(path: Path, scenes: Sequence[Scene], *, title: str) -> None:
    """Writes a page with one player.

    Args:
        path: The HTML file; replaced whole or left as it was.
        scenes: One or more clips to choose from.
        title: Plain text above the player.

    Raises:
        ValueError: no scene, or joints that are not finite.
        UserError: the file cannot be written.
    """
    if not scenes:
        raise ValueError("scenes: expected at least one, got none")
    figure = player_figure(scenes, "scenes", tall=True)
    if any(scene.codes is not None for scene in scenes):
        figure = f"{json_script(wording_payload(), WORDING)}\n{figure}"
    tracks = next((scene.tracks for scene in scenes if len(scene.tracks) > 1), ())
    behind = f"{tracks[0].label}, behind {tracks[1].label}".lower() if tracks else ""
    body = f'<main class="stage">\n<h1>{escape(title)}</h1>\n{figure}\n{legend(behind)}\n</main>'
    write_page(path, page(title, body, styles=PLAYER_STYLES, scripts=PLAYER_SCRIPTS))
