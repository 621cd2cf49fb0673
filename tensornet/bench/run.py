"""All measures of some set-ups, each kept in a small file as soon as it is done."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tensornet.atomic import make_folder, write_file
from tensornet.bench.clock import threads
from tensornet.bench.contenders import contenders
from tensornet.bench.figures import figures
from tensornet.bench.measures import MEASURES
from tensornet.bench.place import Row, Workplace
from tensornet.bench.precision import Precision, products_in
from tensornet.bench.setups import SETUPS, find_setup
from tensornet.bench.tables import markdown
from tensornet.errors import BackboneError, UnknownNameError
from tensornet.heap import give_freed_memory_back

_PACKAGES = ("tensornet", "torch", "tensorly", "peft", "lycoris-lora", "transformers")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes:
        setups, measures: by name; every measure of every set-up.
        contenders: of training steps; all where it is empty. The limit is always there.
        repeats: rounds.
        threads: of PyTorch.
        device: "cpu", or an accelerator.
        data: folder with backbones that are read from files.
        precision: of products.
        rows: of every batch, instead of the set-up's own number.
    """

    setups: Sequence[str]
    measures: Sequence[str]
    contenders: Sequence[str] = ()
    repeats: int = 10
    threads: int = 2
    device: str = "cpu"
    data: Path | None = None
    precision: Precision = "float32"
    rows: int | None = None

    def check(self) -> None:
        """Every name has to be known.

        Raises:
            BackboneError, UnknownNameError: one is not.
        """
        for setup in self.setups:
            find_setup(setup)
        for measure in self.measures:
            if measure not in MEASURES:
                raise UnknownNameError("measure", measure, MEASURES)
        known = contenders()
        for name in self.contenders:
            if name not in known:
                raise UnknownNameError("contender", name, known)


def run(settings: Settings, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what is not measured yet, and write `bench.json`, `bench.md` and the pictures of all that ``out`` holds.

    Returns:
        What `bench.json` holds: the machine, and under "measures" the rows by set-up and measure.

    Raises:
        BackboneError, UnknownNameError: as `Settings.check`.
        WriteError: ``out`` cannot be written.
    """
    settings.check()
    make_folder(out / "parts")
    others = sum(_kept(part, settings) is None for part in (out / "parts").glob("*.json"))
    if others:
        say(
            f"{others} results in {out} are of other settings or another machine: they are left out, and replaced where "
            "they are measured now; choose another --out to keep them"
        )
    with threads(settings.threads), products_in(settings.precision):
        for name in settings.setups:
            _measure(name, settings, out, say)
    found: dict[str, dict[str, list[Row]]] = {}
    for name, measure in itertools.product(SETUPS, MEASURES):
        kept = _kept(_part(out, name, measure), settings)
        if kept is not None:
            found.setdefault(name, {})[measure] = kept
    result = {"format": "tensornet-bench", "machine": machine(settings), "measures": found}
    write_file(out / "bench.json", json.dumps(result, indent=1) + "\n")
    write_file(out / "bench.md", markdown(result))
    figures(found, out)
    return result


def _measure(name: str, settings: Settings, out: Path, say: Callable[[str], None]) -> None:
    """What is not measured yet of one set-up."""
    setup = find_setup(name)
    setup = setup if settings.rows is None else replace(setup, rows=settings.rows)
    backbone = None
    for measure in settings.measures:
        part = _part(out, name, measure)
        if _kept(part, settings) is not None:
            continue
        say(f"{name}: {measure}")
        torch.manual_seed(0)
        try:
            backbone = setup.build(settings.data) if backbone is None else backbone
        except BackboneError as error:
            say(f"{name} is left out: {error}")
            return
        place = Workplace(
            setup, backbone, settings.device, settings.repeats, tuple(settings.contenders), settings.data, settings.precision
        )
        give_freed_memory_back()  # of the contenders before
        rows = MEASURES[measure](place)
        told = {"settings": _told(settings), "machine": machine(settings), "rows": rows}
        write_file(part, json.dumps(told, indent=1) + "\n")


def _part(out: Path, setup: str, measure: str) -> Path:
    return out / "parts" / f"{setup}.{measure}.json"


def _kept(part: Path, settings: Settings) -> list[Row] | None:
    """Rows that were measured before, with the same settings on the same machine; None where there are none."""
    try:
        kept = json.loads(part.read_text())
        rows: list[Row] = kept["rows"]
        same = (kept["settings"], kept["machine"]) == (_told(settings), machine(settings))
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it was cut short
        return None
    return rows if same else None


def machine(settings: Settings) -> dict[str, Any]:
    """Where it was measured: processor, device, threads, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "device": torch.cuda.get_device_name() if settings.device.startswith("cuda") else settings.device,
        "precision": settings.precision,
        "rows": settings.rows,
        "repeats": settings.repeats,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def _told(settings: Settings) -> dict[str, Any]:
    """What a kept part has to agree with."""
    told = asdict(settings)
    return {name: told[name] for name in ("repeats", "threads", "device", "precision", "rows")} | {
        "contenders": list(settings.contenders)
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    known = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    wide = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in known.get("flags", "").split()]
    return " ".join([known.get("model name", platform.machine()), f"({', '.join(wide)})" if wide else ""]).strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
