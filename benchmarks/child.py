"""A process that answers questions, a line each, so that what it does can take turns with what others do."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Itself = TypeVar("Itself", bound="Child")
PATIENCE = 10  # seconds that a child has to end once there are no more questions


class Child:
    """The parent's end; the child ends with the context.

    Args:
        command: runs the child, which reads questions from its standard input.
        name: of the child, for the message when it has ended.
        folder: to run it in; None for this process's.
    """

    def __init__(self, command: Sequence[str], name: str, folder: Path | None = None) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, what: str) -> str:
        """The line that answers a question.

        Raises:
            RuntimeError: the child has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{what}\n")
            answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the process of {self._name} ended; what it wrote above says why")
        return answer

    def __enter__(self: Itself) -> Itself:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:  # which closes the pipes and waits
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.communicate(timeout=PATIENCE)
            finally:  # after an interrupt it may be in the midst of an answer
                self._process.kill()
