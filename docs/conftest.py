"""Runs every code block of the pages: Python in one namespace a page, commands in one folder a page."""

import glob
import os
import shlex
import tempfile
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.testing import CliRunner

from tensornet.cli import app

DATA = Path(__file__).parents[2] / "shared" / "data"


def run_commands(example):
    """Each line as a shell would split it. Training on real data is only checked; what needs such a run is skipped."""
    for line in example.parsed.strip().splitlines():
        if line == "tensornet demo":
            continue  # two minutes; tests/test_cli.py runs it
        if line.startswith("tensornet bench") and "--setup tiny" not in line:
            continue  # measures for minutes; tests/test_bench.py runs every measure on a tiny network
        if "$DATA" in line:
            if not DATA.is_dir():
                pytest.skip(f"no real data at {DATA}")
            if not line.startswith(("tensornet train", "tensornet ranks")):
                pytest.skip("reads a run that takes an hour to train")
            line = line.replace("$DATA", str(DATA)) + " --check"
        elif " runs/" in line and "--out runs/" not in line:
            pytest.skip("reads a run that takes an hour to train")
        verb, *words = shlex.split(line)
        assert verb == "tensornet", f"only our own command is run here: {line}"
        words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
        done = CliRunner().invoke(app, words)  # in this process, for speed; tests/test_cli.py has the real thing
        assert done.exit_code == 0, f"{line}\nexit code {done.exit_code}\n{done.output}\n{done.exception!r}"


def setup(namespace):
    namespace["_before"] = Path.cwd()
    namespace["_folder"] = tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def teardown(namespace):
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", run_commands)],
    pattern="*.md",
    setup=setup,
    teardown=teardown,
).pytest()
