"""``fastvq edit --text``: a generator writes some of a motion's pose codes anew, and holds the others."""

from __future__ import annotations

from rich.console import Console

from fastvq.models.commands import common, options
from fastvq.models.commands.edit_source import SHOWN_CLIPS, TOKENS, clips_of, span_of, tracks
from fastvq.models.editing.by_text import Retold, TextEdit, retell
from fastvq.models.editing.edit import check_editable
from fastvq.models.errors import UserError
from fastvq.models.generators.base_transformer import BaseTransformer
from fastvq.models.generators.kinds import load_with_tokenizer
from fastvq.models.generators.refine_transformer import RefineTransformer
from fastvq.models.generators.sampling import Sampling
from fastvq.models.motion.pose_codes import NUM_CATEGORIES
from fastvq.models.rendering.player import write_player
from fastvq.models.rendering.scene import CodeTrack, Scene
from fastvq.models.tokenizers.pose_codes import PoseCodeTokenizer
from fastvq.models.tokenizers.token_file import write_tokens

FORMAT = "fastvq-edit-text/1"


def run(command: options.Edit) -> int:
    """Edits; returns the exit code."""
    assert command.text is not None
    if command.rule or command.set:
        raise UserError("--text is an edit of its own: give it without --rule and --set")
    if command.generator is None:
        raise UserError(
            "--text needs a model that writes pose codes: give --generator, made by fastvq train pgr2m-base"
        )
    span = None if command.frames is None else span_of(command.frames)
    edit = TextEdit(command.text, command.part, span)
    sampling = Sampling(guidance=command.guidance, temperature=command.temperature)
    device = common.choose_device(command.device)
    generator, tokenizer = load_with_tokenizer(command.generator, command.checkpoint)
    if not isinstance(generator, (BaseTransformer, RefineTransformer)):
        raise UserError(
            f"a {generator.config.kind} writes no pose codes: give a generator made by fastvq train pgr2m-base or "
            "pgr2m-refine"
        )
    generator, model = generator.to(device), check_editable(tokenizer.to(device))
    console = common.make_console()
    clips = clips_of(command, model, console)
    console.print(f"Free to change: {', '.join(edit.free_parts)}", markup=False)
    found: list[Retold] = []
    with common.progress_bar(console, "editing") as bar:
        task = bar.add_task("editing", total=len(clips), name="")
        for done, clip in enumerate(clips, start=1):
            found.append(
                retell(
                    model,
                    generator,
                    clip,
                    edit,
                    sampling=sampling,
                    seed=command.seed,
                    without_residuals=command.without_residuals,
                )
            )
            bar.update(task, completed=done, name=clip.name)
    _write(command, model, edit, found, console)
    if command.json is not None:
        common.write_json(command.json, _numbers(command, edit, found))
    free, changed = (sum(getattr(one, name) for one in found) for name in ("free", "changed"))
    if changed:
        followed = sum(one.followed * one.changed for one in found) / changed
        console.print(
            f"{changed} of {free} pose codes that were free changed; the decoded motion shows {followed:.0%} of them."
        )
        kept = sum(one.kept for one in found) / len(found)
        console.print(f"All others are as before; in the latents that changed, {kept:.0%} of them show as they did.")
    else:
        console.print(f"None of {free} pose codes that were free changed: the motion is as before.")
    what = found[0].clip.name if len(found) == 1 else f"{len(found)} clips"
    console.print(f"{what} -> {command.out} ({common.size_text(command.out.stat().st_size)})", markup=False)
    return 0


def _write(
    command: options.Edit, model: PoseCodeTokenizer, edit: TextEdit, found: list[Retold], console: Console
) -> None:
    if command.out.suffix.lower() == TOKENS:
        write_tokens(command.out, model, [one.clip for one in found])
        return
    if len(found) > SHOWN_CLIPS:
        common.print_notes([f"showing {SHOWN_CLIPS} of {len(found)} clips; choose with --clip"], console)
    write_player(command.out, [_scene(one, model, edit) for one in found[:SHOWN_CLIPS]], title="Edited motions")


def _scene(one: Retold, model: PoseCodeTokenizer, edit: TextEdit) -> Scene:
    codes = model.pose_codes(one.clip.tokens[:NUM_CATEGORIES])
    return Scene(
        name=one.clip.name,
        fps=model.config.fps,
        tracks=tracks(model, one.before, one.after),
        caption=_said(edit),
        note=f"{one.changed} of {one.free} free pose codes changed",
        codes=CodeTrack(codes, model.config.downsample, "after the edit"),
    )


def _said(edit: TextEdit) -> str:
    where = "" if edit.frames is None else f" from frame {edit.frames[0]} to {edit.frames[1]}"
    return f"{edit.text}{where} ({', '.join(edit.free_parts)})"


def _numbers(command: options.Edit, edit: TextEdit, found: list[Retold]) -> dict[str, object]:
    return {
        "format": FORMAT,
        "text": edit.text,
        "parts": list(edit.free_parts),
        "frames": edit.frames,
        "seed": command.seed,
        "without_residuals": command.without_residuals,
        "clips": [
            {
                "name": one.clip.name,
                "free": one.free,
                "changed": one.changed,
                "followed": one.followed,
                "kept": one.kept,
            }
            for one in found
        ],
    }
