"""``fastvq tune``: measures launch configurations on a GPU."""

from __future__ import annotations

from rich.table import Table

from fastvq.models.commands import common
from fastvq.models.commands.options import Tune
from fastvq.models.errors import UserError
from fastvq.tuning import tune


def run(command: Tune) -> int:
    """Tunes; returns the exit code."""
    device = common.choose_device(command.device)
    if device.type != "cuda":
        raise UserError(f"there is nothing to tune on {device}: only Triton kernels, on a GPU, have configurations")
    console = common.make_console()
    table = Table(pad_edge=False, title=f"Tuned on {device}", title_justify="left")
    for heading in ("search", "before, ms", "now, ms", "kept"):
        table.add_column(heading)
    for result in tune(device):
        kept = ", ".join(f"{name} {value}" for name, value in result.fields.items()) or "the table's"
        table.add_row(result.case.key, f"{result.before_ms:.3f}", f"{result.best_ms:.3f}", kept)
        console.print(f"{result.case.key}: {result.tried - result.refused} of {result.tried} configurations ran")
    console.print(table)
    return 0
