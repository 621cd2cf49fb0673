"""Mistakes of a recipe as sentences that say where they are: a line of the file, in a variant, or a setting beside it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tensornet.config import AdaptConfig
from tensornet.errors import near
from tensornet.training.recipe import Backbone, Distill, Input, Rates, Recipe, TaskEntry, Train

Path = tuple[str, ...]
"""The keys that lead to a value; entries of a list are numbered."""

_TABLES: Mapping[str, type[BaseModel]] = {
    "backbone": Backbone,
    "input": Input,
    "train": Train,
    "train.rates": Rates,
    "train.distill": Distill,
    "tasks": TaskEntry,
}
_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[\w-]+)"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"

_NOTHING = object()


class Sources:
    """Where the values of a recipe come from.

    Args:
        text: of the file.
        variants: their changes, by name.
        settings: changes that were given beside the file; the last wins, also over variants.
    """

    def __init__(self, text: str, variants: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> None:
        self._lines = _lines(text)
        self._variants = variants
        self._settings = settings

    def named(self, path: Path, variant: str = "") -> str:
        """The place of a value, and its name, as a sentence about it begins."""
        given = [said for change in self._settings if (said := _said(change, path)) is not _NOTHING]
        if ".".join(path) in ("adapt", *_TABLES):  # what is wrong with a table is seldom all of it in one setting
            given = [said for said in given if not isinstance(said, Mapping)]
        if given:
            return f"--set {dotted(path)}"
        if variant and _said(self._variants[variant], path) is not _NOTHING:
            path = ("variants", variant, *path)
        return self._line(path) + dotted(path)

    def _line(self, path: Path) -> str:
        """The line of a value, of the first part of it, or of the table around it."""
        for length in range(len(path), 0, -1):
            for key, line in self._lines.items():
                if key[:length] == path[:length]:
                    return f"line {line}: "
        return ""

    def sentences(self, error: ValidationError, variant: str) -> list[str]:
        """Every mistake of a recipe that is made of these."""
        return [f"{self.named(path, variant)}: {said}" for path, said in mistakes(error)]


def dotted(path: Path) -> str:
    """Keys as a TOML file has them."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False) for part in path)


def _said(change: object, path: Path) -> object:
    """What a change has at ``path``, or in place of a table on the way there; `_NOTHING` where it says nothing of it."""
    for part in path:
        if isinstance(change, Mapping):
            change = change.get(part, _NOTHING)
    return change


def mistakes(error: ValidationError) -> list[tuple[Path, str]]:
    """Every mistake of a recipe, by the place of the value that is wrong."""
    found: list[tuple[Path, str]] = []
    for mistake in error.errors():
        path, given = tuple(str(part) for part in mistake["loc"]), mistake["input"]
        said = mistake["msg"].removeprefix("Value error, ")
        if path == ("adapt",) and isinstance(given, Mapping):
            found += [((*path, *within), own) for within, own in AdaptConfig.mistakes(given)]
        elif mistake["type"] == "extra_forbidden":
            names = ".".join(part for part in path[:-1] if not part.isdigit())
            known = _TABLES.get(names, Recipe).model_fields
            found.append((path, f"unknown key. {near(path[-1], known, limit=20)}"))
        elif mistake["type"] == "too_short" and given:  # its entries have mistakes of their own, which are told
            continue
        elif mistake["type"] == "missing" or isinstance(given, dict):
            found.append((path, said))
        else:
            found.append((path, f"{said}; got {given!r}"))
    return found


def _lines(text: str) -> dict[Path, int]:
    """The line of every key, by its dotted path; entries of `[[tasks]]` are numbered."""
    found: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]", line)
        key = re.match(rf"\s*({_DOTTED})\s*=", line)
        if header:
            table = _keys(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, str(counts[table]))
            found[table] = number
        elif key:
            found[(*table, *_keys(key[1]))] = number
    return found


def _keys(dotted: str) -> Path:
    """The keys of a dotted one, as TOML reads it; none where it only looks like one, as in a text of many lines."""
    keys: list[str] = []
    try:
        table: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(table, dict):
        ((key, table),) = table.items()
        keys.append(key)
    return tuple(keys)
