"""Runs every code block of the pages: Python in one namespace a page, commands in one folder a page."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

DATA = Path(__file__).parents[2] / "shared" / "data"


def run_commands(example):
    """Each line in a shell. Commands on real data are only checked, and skipped where there is none."""
    folder = Path(sys.executable).parent
    for line in example.parsed.strip().splitlines():
        if line == "tensornet demo":
            continue  # two minutes; tests/test_cli.py runs it
        if "$DATA" in line:
            if not DATA.is_dir():
                pytest.skip(f"no real data at {DATA}")
            line += " --check" if line.startswith("tensornet train") else ""
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "DATA": str(DATA), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise AssertionError(f"{line}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")


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
