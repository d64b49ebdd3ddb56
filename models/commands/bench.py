"""``fastvq bench``: the benchmarks' registry, with a progress bar and a table."""

from __future__ import annotations

from fastvq.models.commands import common
from fastvq.models.commands.options import Bench
from fastvq.models.errors import UserError


def run(command: Bench) -> int:
    """Measures, or compares two files of rows; returns the exit code."""
    from fastvq.benchmarks import run as benchmarks

    if command.html is not None:
        common.check_new_file(command.html, overwrite=command.overwrite, endings=(".html",))
    console = benchmarks.make_console()
    try:
        if command.compare is not None:
            return benchmarks.compare_files(*command.compare, console)
        device = str(common.choose_device(command.device))
        settings = benchmarks.Settings(
            device, seconds=command.seconds, compiled=not command.quick, quick=command.quick
        )
        return benchmarks.bench(
            console, settings, ops=command.ops, shapes=command.shapes, out=command.out, html=command.html
        )
    except ValueError as error:
        raise UserError(str(error)) from error
