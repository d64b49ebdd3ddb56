"""``fastvq edit``: a motion changed by its pose codes, and whether it does what was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fastvq.models.commands import common, options
from fastvq.models.commands.passes import encode_clips
from fastvq.models.editing.edit import Edited, Seen, check_editable, consistency, edit, pooled
from fastvq.models.editing.rules import Edit, named, rule
from fastvq.models.errors import UserError
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.scene import Scene, Track
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import ClipTokens, read_tokens, write_tokens

FORMAT = "fastvq-edit/1"
TOKENS = ".safetensors"
SHOWN_CLIPS = 12


def run(command: options.Edit) -> int:
    """Edits; returns the exit code."""
    common.check_new_file(command.out, overwrite=command.overwrite, endings=(TOKENS, ".html", ".htm"))
    if command.json is not None:
        common.check_new_file(command.json, overwrite=command.overwrite)
    span = None if command.frames is None else _span(command.frames)
    edits = [*(rule(text, span) for text in command.rule), *(named(text, span) for text in command.set)]
    if not edits:
        raise UserError('there is nothing to edit: give --rule "raise the right hand" or --set "L-knee=9"')
    console = common.make_console()
    model = check_editable(common.load_model(command.checkpoint, command.device))
    clips = _chosen(_clips(command, model, console), command.clip)
    edited: list[Edited] = []
    with common.progress_bar(console, "editing") as bar:
        task = bar.add_task("editing", total=len(clips), name="")
        for done, clip in enumerate(clips, start=1):
            edited.append(edit(model, clip, edits, without_residuals=command.without_residuals))
            bar.update(task, completed=done, name=clip.name)
    if command.out.suffix.lower() == TOKENS:
        write_tokens(command.out, model, [one.clip for one in edited])
    else:
        if len(edited) > SHOWN_CLIPS:
            common.print_notes([f"showing {SHOWN_CLIPS} of {len(edited)} clips; choose with --clip"], console)
        scenes = [_scene(one, model, edits) for one in edited[:SHOWN_CLIPS]]
        write_player(command.out, scenes, title="Edited motions")
    if command.json is not None:
        common.write_json(command.json, _numbers(command, edits, edited))
    _print(edited, console)
    what = edited[0].clip.name if len(edited) == 1 else f"{len(edited)} clips"
    console.print(f"{what} -> {command.out} ({common.size_text(command.out.stat().st_size)})", markup=False)
    return 0


def _span(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise UserError(f"--frames must be START:STOP, such as 20:40, got {text!r}")
    return int(match[1]), int(match[2])


def _clips(command: options.Edit, model: PoseCodeTokenizer, console: Console) -> list[ClipTokens]:
    if command.source.suffix.lower() == TOKENS:
        return read_tokens(command.source, model)
    clips = common.read_features(command.source, console, model.config, mapping=command.mapping, scale=command.scale)
    if command.clip:
        clips = [clip for clip in clips if clip.name in command.clip] or clips
    tokens = encode_clips(model, clips, console)
    return [ClipTokens(clip.name, len(clip.features), codes) for clip, codes in zip(clips, tokens, strict=True)]


def _chosen(clips: Sequence[ClipTokens], wanted: Sequence[str]) -> list[ClipTokens]:
    if not wanted:
        return list(clips)
    by_name = {clip.name: clip for clip in clips}
    for name in wanted:
        if name not in by_name:
            some = ", ".join(list(by_name)[:5]) + (" ..." if len(by_name) > 5 else "")
            raise UserError(f"there is no clip {name!r}; there are {some}")
    return [by_name[name] for name in wanted]


def _scene(one: Edited, model: PoseCodeTokenizer, edits: Sequence[Edit]) -> Scene:
    shown = consistency(one.asked)
    return Scene(
        name=one.clip.name,
        fps=model.config.fps,
        tracks=[
            Track(label, model.config.features.to_smpl(features))
            for label, features in (("Before", one.before), ("After", one.after))
        ],
        caption="; ".join(_said(each) for each in edits),
        note=f"asked codes seen: {shown.before.share:.0%} before, {shown.after.share:.0%} after",
    )


def _said(one: Edit) -> str:
    if one.frames is None or " from " in one.name:
        return one.name
    return f"{one.name} from frame {one.frames[0]} to {one.frames[1]}"


def _numbers(command: options.Edit, edits: Sequence[Edit], edited: Sequence[Edited]) -> dict[str, object]:
    def both(before: Seen, after: Seen) -> dict[str, object]:
        return {"before": before._asdict(), "after": after._asdict()}

    asked = pooled(edited)
    return {
        "format": FORMAT,
        "edits": [_said(one) for one in edits],
        "without_residuals": command.without_residuals,
        "consistency": both(*consistency(asked)),
        "asked": [
            {"code": one.code, "phrase": one.phrase, "latents": one.latents, **both(one.before, one.after)}
            for one in asked
        ],
        "clips": [
            {"name": one.clip.name, "kept": one.kept, "consistency": both(*consistency(one.asked))} for one in edited
        ],
    }


def _print(edited: Sequence[Edited], console: Console) -> None:
    title = "Seen in the decoded motion: share of the frames, and how many bins away"
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("asked pose code")
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "after" else "")
    asked = pooled(edited)
    rows = [(one.phrase, one.before, one.after) for one in asked]
    for phrase, *both in (*rows, ("all: edit consistency", *consistency(asked))):
        cells = [f"{seen.share:.0%}  {seen.off:.1f}" for seen in both]
        table.add_row(phrase, *cells, end_section=phrase == rows[-1][0])
    console.print(table, soft_wrap=False)
    kept = sum(one.kept for one in edited) / len(edited)
    console.print(f"Of the pose codes that were not asked for, the edited frames show {kept:.0%} as they did before.")
