"""What a loop of a compiled kernel costs, counted in the machine code that NVIDIA's disassembler prints.

    instructions a score = non-matrix instructions of the loop over codes x threads / (rows x codes of a tile)

that is, what one lane issues for one of its scores, copies, addresses and branches included. The instructions that
multiply matrices are left out: they run beside the others, on a unit of their own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
LABEL = re.compile(r"\s*(\.L_x_\d+):")
INSTRUCTION = re.compile(r"\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\s*(.*?);")


class Loop(NamedTuple):
    """A loop that multiplies matrices: its instructions by name, those of the loops inside it left out."""

    instructions: Counter[str]

    @property
    def matrix(self) -> int:
        """How many of the instructions multiply matrices."""
        return sum(count for name, count in self.instructions.items() if "MMA" in name)

    @property
    def others(self) -> int:
        """How many do not."""
        return self.instructions.total() - self.matrix


def available() -> bool:
    """Whether Triton came with the disassembler."""
    return DISASSEMBLER.exists()


def disassemble(cubin: bytes) -> str:
    """The machine code of a cubin as text, with labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([DISASSEMBLER, "-c", file.name], capture_output=True, text=True, check=True).stdout


def matrix_loops(text: str) -> list[Loop]:
    """The loops of a disassembled kernel that multiply matrices, innermost first.

    A loop is what lies between a label and a later branch back to it.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    spans: dict[int, int] = {}  # the last branch back to a label decides where its loop ends
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := INSTRUCTION.match(line):
            names.append(found[1].split(".")[0])
            target = re.search(r"`\((\.L_x_\d+)\)", found[2])
            if names[-1] == "BRA" and target and target[1] in labels:
                spans[labels[target[1]]] = len(names)
    loops = []
    for first, last in sorted(spans.items(), key=lambda span: span[1] - span[0]):
        inside = {
            place
            for begin, end in spans.items()
            if first <= begin and end <= last and (begin, end) != (first, last)
            for place in range(begin, end)
        }
        if any("MMA" in name for name in names[first:last]):
            kept = (names[place] for place in range(first, last) if place not in inside)
            loops.append(Loop(Counter(kept)))
    return loops
