import subprocess
import sys

import pytest

from fastvq.benchmarks.child import Child

ECHO = "import sys\nfor line in sys.stdin: print(line.strip() * 2, flush=True)"


def test_a_child_answers_until_its_context_ends():
    with Child([sys.executable, "-c", ECHO], "echo") as child:
        assert [child.ask("ab"), child.ask("c")] == ["abab", "cc"]
    assert child._process.returncode == 0


def test_a_child_that_has_ended_is_named():
    with Child([sys.executable, "-c", "1"], "nobody") as child:
        child._process.wait()
        with pytest.raises(RuntimeError, match="process of nobody ended"):
            child.ask("anything")


def test_a_busy_child_does_not_outlive_an_interrupt(monkeypatch):
    def interrupted(self, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        Child([sys.executable, "-c", "import time; time.sleep(60)"], "busy") as child,
    ):
        pass
    assert child._process.returncode < 0
