"""The command line as a user runs it: in a process of its own, or, where it refuses, in this one."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from tensornet.cli import app

HUB = Path(__file__).parent / "hub"

RECIPE = """
[backbone]
source = "hub:hub:tiny"
[input]
size = 12
[adapt]
decomposition = "cp"
rank = 2
[train]
epochs = 6
batch_size = 8
lr = 2e-2
pad = 1
flip = false
[[tasks]]
name = "folders"
data = "folders"
[[tasks]]
name = "parquet"
data = "parquet"
"""


def tensornet(*args, code=0, cwd=None):
    """Run the command in a process of its own, warnings as errors in our own code."""
    command = [sys.executable, "-W", "error::UserWarning:tensornet", "-m", "tensornet", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if code == 0 else " ".join(done.stderr.split())


def ran(*args):
    """What the command prints; in this process, for speed."""
    done = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*args, code=1):
    """What the command says where it refuses, out of its frame; in this process, for speed."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return " ".join(done.stderr.replace("│", " ").split())
