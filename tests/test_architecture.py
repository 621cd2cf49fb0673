"""The house: which way imports point, how long files are, what is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
import tensornet as tn

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "tensornet").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")])


def test_imports_point_one_way():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_are_rooms_of_one_size():
    too_long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 330}
    assert not too_long
    assert not {"utils.py", "helpers.py", "core.py", "common.py"} & {p.name for p in SOURCES}


def test_the_core_imports_no_extra():
    code = "import sys, tensornet, tensornet.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    extras = ["lightning", "torchmetrics", "datasets", "matplotlib", "sklearn", "torchvision", "timm", "tltorch"]
    done = subprocess.run([sys.executable, "-c", code, *extras], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def public():
    for package in (tn, analysis):
        for name, thing in vars(package).items():
            if not name.startswith("_") and callable(thing):
                yield f"{package.__name__}.{name}", thing


@pytest.mark.parametrize(("name", "thing"), list(public()))
def test_public_names_are_documented(name, thing):
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            if not key.startswith("_") and inspect.isfunction(member):
                assert inspect.getdoc(getattr(thing, key)), f"{name}.{key}"


def test_errors_derive_from_the_one_and_from_a_built_in():
    from tensornet import errors

    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, tn.TensornetError) and error is not tn.TensornetError:
            built_in = [base for base in error.__mro__ if base.__module__ == "builtins"]
            assert any(base not in (Exception, BaseException, object) for base in built_in), name


def test_no_pickle_and_no_print():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"import pickle|torch\.save|torch\.load\(|\bexec\(|\beval\(\"", text), path
