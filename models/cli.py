"""The command line ``fastvq``: picks a command, and turns errors into one sentence and an exit code.

Exit codes: 0 done; 1 the system refused (or a defect in fastvq, with a traceback); 2 something in the command or
in its files is wrong; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from fastvq.models import launch
from fastvq.models.errors import UserError

COMMANDS = {
    "demo": "train a small tokenizer for two minutes and show what it does, on made-up or your own motions",
    "train": "train a tokenizer or a generator, on your motions or made-up ones; stop it and go on as you like",
    "encode": "turn motions into a file of tokens",
    "decode": "turn a file of tokens back into motions, as BVH or joint arrays",
    "evaluate": "measure how well a tokenizer keeps motions",
    "reproduce": "train what a paper compares, and set its claims beside the measurements",
    "train-evaluator": "train what an FID is taken from, a motion-text evaluator of one's own",
    "generate": "turn texts into motions with a trained generator",
    "edit": 'change a motion by its pose codes, by name or by a rule such as "raise the right hand"',
    "render": "show motions or tokens as a page with moving skeletons, or as a GIF",
    "bench": "measure every op and module beside other libraries, with what the hardware allows",
    "tune": "measure launch configurations on a GPU, and keep what is faster than the table",
    "doctor": "tell which device, versions and kernels are in use, and why",
}
# Under torchrun; all others would write their files once for each process.
SHARED = ("train",)
# Characters; files may hold names and numbers of any length.
LONGEST_MESSAGE = 2000
# What the extra [models] brings; import names.
EXTRA = (
    "PIL",
    "accelerate",
    "huggingface_hub",
    "rich",
    "safetensors",
    "scipy",
    "tensorboard",
    "torchmetrics",
    "tyro",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: its name and options, as typed after ``fastvq``; ``sys.argv[1:]`` if absent.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no "²", or a name that is no text: better a "?" than no result.
        sys.stdout.reconfigure(errors="replace")
    if os.environ.get("FASTVQ_DEBUG", "0") not in ("", "0"):
        return _dispatch(arguments)
    try:
        return _dispatch(arguments)
    except UserError as error:
        # Every process finds it, or hears of it from the first.
        return _failed(str(error), 2) if launch.is_main() else 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        return _failed(f'{package} is not installed: pip install "fastvq-torch[models]"', 2)
    except KeyboardInterrupt:
        return _failed("interrupted", 130) if launch.is_main() else 130
    except BrokenPipeError:
        # The reader has gone (`fastvq doctor | head -1`); what is still buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _failed("out of memory: use a smaller batch size or model, or fewer and shorter motions", 1)


def _dispatch(arguments: list[str]) -> int:
    name, options = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        import fastvq

        print(f"fastvq {fastvq.__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        what = "option" if name.startswith("-") else "command"
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no {what} {name}: {hint}")
    processes = launch.number_of_processes()
    if processes > 1 and name not in SHARED:
        raise UserError(
            f"fastvq {name} runs in one process, got {processes}: launch it without torchrun, which is for "
            f"{', '.join(SHARED)}"
        )
    try:
        with contextlib.nullcontext() if launch.is_main() else contextlib.redirect_stderr(io.StringIO()):
            command = importlib.import_module("fastvq.models.commands.options").read(name, options)
    except SystemExit as stop:  # how tyro ends after --help (0) and after options that it refuses (2)
        return stop.code if isinstance(stop.code, int) else 2
    code: int = importlib.import_module(f"fastvq.models.commands.{name.replace('-', '_')}").run(command)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())
    return f"""usage: fastvq COMMAND [OPTIONS]

Motion to tokens and back, with fused vector quantization.

commands:
{rows}

Start with `fastvq demo`. `fastvq COMMAND --help` explains a command, `fastvq --version` tells the version.

environment:
  FASTVQ_DEBUG=1     show tracebacks instead of one sentence when something is wrong
  FASTVQ_NATIVE=0    do without the compiled CPU kernels
  FASTVQ_CACHE_DIR   where compiled kernels and tuned configurations are kept"""


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether that is what happened: on a CPU torch says so in a RuntimeError like any other."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "DefaultCPUAllocator" in str(error)


def _failed(message: str, code: int) -> int:
    text = " ".join(message.split())
    print(f"fastvq: {text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + ' ...'}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
