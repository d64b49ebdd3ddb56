"""``fastvq edit``: a motion changed by its pose codes, and whether it does what was asked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fastvq.models.commands import common, edit_text, options
from fastvq.models.commands.edit_source import SHOWN_CLIPS, TOKENS, clips_of, span_of, tracks
from fastvq.models.editing.edit import Edited, Seen, check_editable, consistency, edit, pooled
from fastvq.models.editing.rules import Edit, named, rule
from fastvq.models.errors import UserError
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.scene import Scene
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import write_tokens

FORMAT = "fastvq-edit/1"


def run(command: options.Edit) -> int:
    """Edits; returns the exit code."""
    common.check_new_file(command.out, overwrite=command.overwrite, endings=(TOKENS, ".html", ".htm"))
    if command.json is not None:
        common.check_new_file(command.json, overwrite=command.overwrite)
    if command.text is not None:
        return edit_text.run(command)
    if command.generator is not None or command.part:
        raise UserError("--generator and --part go with --text, which says what the motion shall show: give it")
    if command.checkpoint is None:
        raise UserError("a rule needs the model that makes tokens of motions: give --checkpoint")
    span = None if command.frames is None else span_of(command.frames)
    edits = [*(rule(text, span) for text in command.rule), *(named(text, span) for text in command.set)]
    if not edits:
        raise UserError('there is nothing to edit: give --rule "raise the right hand" or --set "L-knee=9"')
    console = common.make_console()
    model = check_editable(common.load_model(command.checkpoint, command.device))
    clips = clips_of(command, model, console)
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


def _scene(one: Edited, model: PoseCodeTokenizer, edits: Sequence[Edit]) -> Scene:
    shown = consistency(one.asked)
    return Scene(
        name=one.clip.name,
        fps=model.config.fps,
        tracks=tracks(model, one.before, one.after),
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
