"""The README's Python runs, and its commands are the ones that continuous integration runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README.md snippet {number}", "exec"), {"__name__": "__main__"})


def test_there_is_something_to_run():
    assert SNIPPETS


def test_the_test_command_is_marked_for_ci():
    command = re.search(r"<!-- test command -->\n```bash\n(.*?)\n```", README, flags=re.DOTALL)
    assert command is not None
    assert "torch==2.13.0" in command[1]
    assert command[1].split(" && ")[-1].split()[0] == "pytest"


def test_relative_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
