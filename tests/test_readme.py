"""The README says what works."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(block, names)
    assert [len(row) for row in names["rows"]] == [7, 5, 7]
    assert (tmp_path / "runs/sketch/task.json").is_file()


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    assert all((Path(__file__).parents[1] / link).is_file() for link in links)
