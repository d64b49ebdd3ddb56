"""The options of every command, as dataclasses that tyro reads. Kept apart so that ``--help`` loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastvq.models.claims.studies import NAMES

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(optional)")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(optional)")]
OptionalNumber = Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(optional)")]
OptionalInteger = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(optional)")]
OptionalPair = Annotated[
    tuple[Path, Path] | None, tyro.conf.arg(metavar="PATH PATH", help_behavior_hint="(optional)")
]


@dataclass(frozen=True)
class Demo:
    """Train a small motion tokenizer, measure it on motions it has not seen, and show them in a report.

    Without --data the motions are made up: bodies that walk, turn, run, jump, reach, wave and squat. Training takes
    about --seconds; the whole demo about a minute more.
    """

    data: OptionalPath = None
    """Your own motions: a file or folder of BVH, ASF/AMC, joint arrays, or features (272, HumanML3D, KIT-ML)."""
    out: OptionalPath = None
    """The run folder to write; runs/demo, or the first free of runs/demo-2, runs/demo-3, ... if absent."""
    seconds: float = 120.0
    """Training time."""
    overwrite: bool = False
    """Remove an earlier run in --out first."""
    seed: int = 0
    """Seed of the made-up motions and of the training."""


@dataclass(frozen=True)
class Encode:
    """Turn motions into a file of tokens.

    Motions are resampled to the model's frame rate and cut where a body jumps; a clip needs 4 frames. For a
    heatmap-vqgan they are drawn as heatmaps, window after window, each fitted into its pictures by itself.
    """

    checkpoint: str
    """A run folder, a folder of save_pretrained, or a name on the Hugging Face Hub."""
    data: Path
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays, or features (272, HumanML3D, KIT-ML)."""
    out: Path
    """The token file to write, ending in .safetensors."""
    split: OptionalText = None
    """Only clips of this split, train or test; all if absent."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    batch_size: int = 16
    """Clips encoded at once; of heatmaps windows, and fewer where they are large."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --out if it exists."""


@dataclass(frozen=True)
class Decode:
    """Turn a file of tokens back into motions, or into heatmaps.

    bvh writes one file for each clip; npz writes motions.npz, joint positions (frames, 22, 3) in metres of every clip
    by name, with motions.json beside it. Both have Y up and SMPL's 22 joints, and fastvq reads them again.

    Of a heatmap-vqgan, npy writes for each clip its heatmaps (frames, views, rows, columns) and the joints in them,
    (frames, views, 22, 2) pixels, column and row; json writes these joints alone, and npz joints in metres, where the
    views are those of a volume. They are found by fitting a body to the heatmaps, which takes about a second for each
    window, and may mistake left for right. clips.json says what the files hold.
    """

    checkpoint: str
    """The model that wrote the tokens: a run folder, a folder of save_pretrained, or a name on the hub."""
    tokens: Path
    """The token file."""
    out: Path
    """The folder to write into."""
    format: Literal["auto", "bvh", "npz", "npy", "json"] = "auto"
    """Kind of files to write: bvh or npz of motions, npy, json or npz of heatmaps; auto is bvh, or npy."""
    rigid_bones: bool = False
    """Pose a skeleton of constant bone lengths by the decoded rotations. Otherwise joints are where the model puts
    them, and BVH files hold positions for joints whose distances vary."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Write into --out although it is not empty; files of the same names are replaced."""


@dataclass(frozen=True)
class Evaluate:
    """Measure how well a tokenizer keeps motions, or how good the motions are that a generator makes of texts.

    Of a tokenizer: joint error, reconstruction loss, use of the codes, speed. Of a generator (fastvq train hifigpt,
    pgr2m-base or pgr2m-refine), which generates a motion for the description of every clip: with --evaluator
    R-precision, MM-Dist, FID, Diversity and MultiModality with 95 % intervals, with --attributes how many motions do
    what their procedural captions ask, and the speed.
    """

    checkpoint: str
    """A run folder, a folder of save_pretrained, or a name on the Hugging Face Hub."""
    data: OptionalPath = None
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays, or features (272, HumanML3D, KIT-ML). A generator can
    do without: it is then measured on made-up motions whose captions training on made-up ones never shows."""
    clips: int = 2000
    """Of a generator without --data: how many motions are made up, of which an eighth is held out."""
    split: str = "test"
    """The split to measure: train, test, another one that the data names, or all."""
    evaluator: OptionalPath = None
    """Adds the FID of an evaluator: a folder of fastvq train-evaluator, or the published finest.tar."""
    attributes: bool = False
    """Of a generator: read action, direction, side and speed off its motions, and set them against the captions."""
    repeats: int = 20
    """Of a generator: how often all is generated again, for the intervals."""
    multimodality: int = 100
    """Of a generator: descriptions of which 30 motions each are compared, in every repeat; 0 leaves that out."""
    guidance: OptionalNumber = None
    """Of a generator: strength of the text; its usual one if absent."""
    temperature: OptionalNumber = None
    """Of a generator: divides the logits; its usual one if absent."""
    top_k: OptionalInteger = None
    """Of a generator: draw among so many of the likeliest codes."""
    top_p: OptionalNumber = None
    """Of a generator: draw among the likeliest codes that together have this probability."""
    seed: int = 0
    """Of a generator: of all that is drawn."""
    windows: OptionalInteger = None
    """Measure so many windows of a heatmap model at most, evenly spread; all if absent."""
    json: OptionalPath = None
    """File for the numbers."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    batch_size: int = 16
    """Clips encoded at once; of heatmaps windows, and fewer where they are large."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --json if it exists."""


@dataclass(frozen=True)
class Reproduce:
    """Test a paper's claims: train what they compare, measure it on the test split, write claim beside measurement.

    Writes claims_SYSTEM.md and claims_SYSTEM.csv. A run that --out holds already is not trained again, so that the
    same command goes on after Ctrl-C. Without --data the motions are made up.
    """

    system: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="SYSTEM", help=f"Whose claims: {', '.join(NAMES)}.")
    ]
    data: OptionalPath = None
    """Motions with a train and a test split: a file or folder, as fastvq train takes them."""
    out: OptionalPath = None
    """Folder of the runs and tables; runs/reproduce-SYSTEM if absent."""
    steps: OptionalInteger = None
    """Optimizer steps of every run; if absent, what takes a few minutes at most on one thread."""
    width: OptionalInteger = None
    """Channels of every run's convolutions, or of its transformers."""
    seeds: tuple[int, ...] = ()
    """Seeds, each a run of everything; three if absent."""
    tokenizer: OptionalText = None
    """Of a study of generators (s3-gen, s1-gen): a trained tokenizer to share, instead of training one first."""
    evaluator: OptionalPath = None
    """The evaluator that FIDs are taken from; if absent, a small one is trained once for the data, beside --out."""
    quick: bool = False
    """Toy sizes: whether everything runs. The verdicts mean nothing."""


@dataclass(frozen=True)
class TrainEvaluator:
    """Train a motion-text evaluator, whose embeddings an FID is taken from, on motions with descriptions.

    The published evaluator's weights cannot be had here. This one has its shape, and what it measures is named after
    it and compares with nothing else. fastvq evaluate --evaluator uses it.
    """

    data: Path
    """Motions with descriptions: a file or folder, as fastvq train takes them."""
    out: Path
    """The folder to write."""
    name: OptionalText = None
    """What to call the data in the evaluator's label; its file or folder's name if absent."""
    input_dim: int = 263
    """Features of a frame, those of the tokenizers to measure: 263, 251 or 272."""
    small: bool = False
    """An eighth to a half of the published sizes and a minute's training, for little data and two CPU cores."""
    movement_steps: OptionalInteger = None
    """Steps in which the convolutions learn movements; 5000, or 300 of a small one."""
    match_steps: OptionalInteger = None
    """Steps in which motions and descriptions learn to meet; 50000, or 700 of a small one."""
    lr: OptionalNumber = None
    """Learning rate of Adam; 1e-4, or 5e-4 of a small one."""
    movement_hidden: OptionalInteger = None
    """Channels of the first convolution; 512, or 256 of a small one."""
    movement_dim: OptionalInteger = None
    """Channels of a movement, four frames; 512, or 128 of a small one."""
    motion_hidden: OptionalInteger = None
    """Of the motions' recurrent network; 1024, or 128 of a small one."""
    text_hidden: OptionalInteger = None
    """Of the descriptions'; 512, or 64 of a small one."""
    embedding_dim: OptionalInteger = None
    """Of motions and descriptions; 512, or 128 of a small one."""
    window: int = 32
    """Frames of the windows over which an FID is taken."""
    stride: int = 4
    """Frames from one window to the next."""
    seed: int = 0
    """Seed of weights and batches."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace the evaluator in --out."""
    resume: bool = False
    """Go on with a training that was stopped."""


@dataclass(frozen=True)
class Generate:
    """Turn texts into motions with a trained generator (fastvq train hifigpt, pgr2m-base or pgr2m-refine).

    --out decides the form by its ending: .bvh, .gif, .html (all motions on one page, with the pose codes of every
    frame in words), .npy (joints (frames, 22, 3) in metres) or .safetensors (tokens, for fastvq edit and decode).
    Several motions become clip_1.bvh, clip_2.bvh and so on. A seed gives the same motions on every run.
    """

    text: tuple[str, ...]
    """What the motion shall show, in quotes; several texts give several motions."""
    checkpoint: str
    """A generator: a run folder, or a folder of save_pretrained."""
    out: Path
    """The file to write: .bvh, .gif, .html, .npy or .safetensors."""
    tokenizer: OptionalText = None
    """The tokenizer whose codes it writes; the one in the run folder if absent."""
    text_encoder: OptionalText = None
    """The text encoder that it was trained with, where that has moved: clip:FOLDER and the like."""
    count: int = 1
    """Motions of each text."""
    seconds: OptionalNumber = None
    """Duration of every motion; the generator ends them itself if absent."""
    seed: int = 0
    """Another seed gives other motions."""
    guidance: OptionalNumber = None
    """Strength of the text: 1 is the plain model, more exaggerates it; the generator's usual one if absent."""
    temperature: OptionalNumber = None
    """Divides the logits: 0 takes the likeliest code, more varies more; the generator's usual one if absent."""
    top_k: OptionalInteger = None
    """Draw among so many of the likeliest codes."""
    top_p: OptionalNumber = None
    """Draw among the likeliest codes that together have this probability."""
    base_only: bool = False
    """Show pose codes alone, without the residual codes that refine them; .html shows both side by side."""
    size: int = 360
    """Height of a GIF, pixels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --out if it exists."""


@dataclass(frozen=True)
class Edit:
    """Change a motion by its pose codes, and measure whether the decoded motion does what was asked.

    Takes a model with pose codes (fastvq train pose-rvq or pgr2m). --rule "raise the right hand from frame 20 to 40"
    sets all codes that the rule stands for, --set "left knee=bent at 90 degrees" a single one by its name. Prints in
    what share of the edited frames each asked code is seen in the decoded motion, before and after. --text lets a
    generator write the codes of some parts of the body anew.
    """

    source: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(
            metavar="TOKENS_OR_MOTIONS", help="A token file (.safetensors), or motions, which are encoded first."
        ),
    ]
    out: Path
    """The file to write: edited tokens (.safetensors), or a page with each motion before and after (.html)."""
    checkpoint: OptionalText = None
    """The model: a run folder, a folder of save_pretrained, or a name on the Hugging Face Hub; --text finds the one
    in --generator."""
    rule: tuple[str, ...] = ()
    """Rules; one that there is not is answered with those that there are."""
    set: tuple[str, ...] = ()
    """Pose codes, published ("L-knee=9") or in words ("left hand=above the neck")."""
    text: OptionalText = None
    """What the motion shall show, such as "a person waves with the left hand"; --generator then writes anew the pose
    codes of the parts of the body that it names, and holds all others."""
    generator: OptionalPath = None
    """The run folder of a pgr2m-base, or of a pgr2m-refine, which adds the residual codes of what changed."""
    part: tuple[str, ...] = ()
    """What --text may change, instead of what it names: left arm, right arm, left leg, right leg, trunk, arms, legs,
    body."""
    temperature: float = 0.0
    """With --text: 0 takes the likeliest codes, 1 draws them as they are likely."""
    guidance: float = 1.0
    """With --text: strength of the text, above 1 of a generator that was trained with --text-dropout."""
    seed: int = 0
    """Of what --temperature draws."""
    frames: OptionalText = None
    """The span START:STOP of what names none itself, without the frame STOP; the whole clip if absent."""
    clip: tuple[str, ...] = ()
    """Names of the clips to edit; all if absent."""
    without_residuals: bool = False
    """Leave out the residual codes of the edited frames, which were chosen for the motion as it was."""
    json: OptionalPath = None
    """File for the numbers."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --out and --json if they exist."""


@dataclass(frozen=True)
class Render:
    """Show motions or tokens as a page with moving skeletons (.html) or as an animation (.gif).

    --data alone shows motions as they are; with --checkpoint each stands beside what comes back from its tokens.
    --tokens with --checkpoint shows what the tokens mean. Of a heatmap-vqgan the pictures are its heatmaps, all views
    below each other, as a GIF.
    """

    out: Path
    """The file to write, ending in .html (all chosen clips) or .gif (one clip)."""
    data: OptionalPath = None
    """Motions: a file or folder of BVH, ASF/AMC, joint arrays, or features (272, HumanML3D, KIT-ML)."""
    tokens: OptionalPath = None
    """A token file."""
    checkpoint: OptionalText = None
    """The model: a run folder, a folder of save_pretrained, or a name on the Hugging Face Hub."""
    clip: tuple[str, ...] = ()
    """Names of the clips to show; the first ones if absent."""
    max_clips: int = 12
    """Largest number of clips on a page."""
    size: int = 360
    """Height of a GIF, pixels; of heatmaps that of all their views together, rounded to whole pixels of theirs."""
    mapping: OptionalPath = None
    """JSON file of {SMPL joint: joint of your skeleton}, where joint names say too little."""
    scale: OptionalNumber = None
    """Metres per unit of the files, where they do not say it and the size of the body misleads."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace --out if it exists."""


@dataclass(frozen=True)
class Bench:
    """Measure every op and module beside other libraries, on this machine, after its results were compared.

    Prints a table: times, ratios, the share of them that the hardware needs at least, peak memory, wrong rows. Takes
    under ten minutes on two cores; keep the machine quiet. Libraries that are not installed are left out:
    pip install "fastvq-torch[bench]" brings them.
    """

    ops: tuple[str, ...] = ()
    """Which ops and modules, such as nearest or GroupedVQ; all if absent."""
    shapes: tuple[str, ...] = ()
    """Which sizes, by their names in the table; all if absent."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    out: OptionalPath = None
    """CSV file that gets the rows, behind those that it has."""
    html: OptionalPath = None
    """Page with tables and figures to write, ending in .html."""
    compare: OptionalPair = None
    """Measure nothing, and show which ratios moved from one file of rows to another; exit code 1 if ours fell."""
    seconds: float = 4.0
    """How long the rounds of a case go on; three are taken at least."""
    quick: bool = False
    """Toy sizes, without torch.compile: whether everything runs and agrees. Times mean nothing."""
    overwrite: bool = False
    """Replace --html if it exists."""


@dataclass(frozen=True)
class Tune:
    """Measure launch configurations of the search on a GPU, and keep what is faster than the built-in table.

    Takes some minutes; the results lie in FASTVQ_CACHE_DIR and are used from then on. CPUs have nothing to tune.
    """

    device: str = "auto"
    """The device to tune for: auto, cuda or cuda:N."""


@dataclass(frozen=True)
class Doctor:
    """Tell which device, versions and kernels are in use, and why.

    Compiles the CPU kernels if that was not done yet.
    """

    device: str = "auto"
    """The device to ask about: auto, cpu, cuda or cuda:N."""


def read(name: str, arguments: Sequence[str]) -> Any:
    """The options of the command ``name`` as its dataclass; prints and exits after ``--help`` or a wrong option."""
    command: Any
    default = None
    if name == "train":
        # Its options are the training's own settings, whose checks need torch.
        from fastvq.models.commands import train_options

        command = train_options.command(arguments)
        default = train_options.stored(arguments, command)
    else:
        command = _COMMANDS[name]
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(command, prog=f"fastvq {name}", args=list(arguments), config=config, **keywords)


_COMMANDS = {
    "demo": Demo,
    "encode": Encode,
    "decode": Decode,
    "evaluate": Evaluate,
    "reproduce": Reproduce,
    "train-evaluator": TrainEvaluator,
    "generate": Generate,
    "edit": Edit,
    "render": Render,
    "bench": Bench,
    "tune": Tune,
    "doctor": Doctor,
}
