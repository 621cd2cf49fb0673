"""Recipes from files: read, changed by settings, and refused with every mistake and its line."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tensornet.assignments import read_assignment
from tensornet.config import read_layers
from tensornet.errors import ConfigError, RecipeError, TensornetError
from tensornet.names import check_task_name
from tensornet.training.mistakes import Sources
from tensornet.training.recipe import FULL, Recipe

_FOLDERS = ("tasks", "models", "runs", "checkpoints")


def shipped() -> list[str]:
    """The names of the recipes in the package."""
    return sorted(
        f.name.removesuffix(".toml") for f in resources.files("tensornet.recipes").iterdir() if f.name.endswith(".toml")
    )


def load_recipe(source: str, settings: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipe in a file, or one of the package by its name.

    A path under `adapt.layers` begins at the recipe's folder, in ``settings`` at the working directory; what the plan says
    becomes part of the recipe.

    Args:
        source: a path, or a name that `shipped` lists.
        settings: changes `key=value`, dotted keys, values as in TOML; they also win over variants.

    Returns:
        One recipe per variant, under its name; under "" where there are none. Where one learns from "full" and no variant
        has that name, full fine-tuning is added.

    Raises:
        RecipeError: it cannot be read, or has mistakes: every one is listed, with its line.
    """
    text = _text(source)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(source, [str(error)]) from None
    variants = data.get("variants", {})
    problems: list[str] = []
    recipes: dict[str, Recipe] = {}
    changes = _settings(settings, problems)
    sources = Sources(text, variants, changes)
    home = Path(source).parent if Path(source).suffix == ".toml" else Path()
    for name, table in [("", data), *(variants.items() if isinstance(variants, dict) else ())]:
        place = sources.named(("adapt", "layers"), name)
        if why := _read_plan(table, home):
            problems.append(f"{place}: {why}")
    for change in changes:
        if why := _read_plan(change, Path()):
            problems.append(f"--set adapt.layers: {why}")
    if not isinstance(variants, dict):
        problems.append(f"{sources.named(('variants',))}: a table of variants was expected; got {variants!r}")
    for name, change in variants.items() if isinstance(variants, dict) and variants else [("", {})]:
        merged = copy.deepcopy({key: value for key, value in data.items() if key != "variants"})
        if variants:
            problems += [f"{sources.named(('variants', name))}: {why}" for why in _no_variant(name, change)]
        for one in (change, *changes):
            if isinstance(one, dict):
                _displace(merged.get("adapt"), one.get("adapt"))
                _overlay(merged, one)
        try:
            recipes[name] = Recipe.model_validate(merged)
        except ValidationError as error:
            problems += sources.sentences(error, name)
    if problems:
        raise RecipeError(f"recipe {source}", list(dict.fromkeys(problems)))
    taught = [recipe for recipe in recipes.values() if recipe.train.distill and recipe.train.distill.teacher == FULL]
    if taught and FULL not in recipes:
        wanted = [seed for r in taught if r.train.distill for seed in (*r.train.seeds, *r.train.distill.seeds)]
        recipes[FULL] = taught[0].full_fine_tuning(wanted)
    return recipes


def _no_variant(name: str, change: object) -> Iterator[str]:
    """What is wrong with a variant as such, whatever it changes."""
    try:
        check_task_name(name)
    except TensornetError as error:
        yield str(error)
    if name in _FOLDERS or re.fullmatch(r"seed-\d+", name):
        yield "a run has a folder of that name; choose another"
    if not isinstance(change, dict):
        yield f"a table of changes was expected; got {change!r}"
    elif "variants" in change:
        yield "a variant has no variants of its own"


def _text(source: str) -> str:
    path = Path(source)
    if path.suffix != ".toml" and source in shipped():
        return (resources.files("tensornet.recipes") / f"{source}.toml").read_text("utf-8")
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"recipe {source}", [f"it cannot be read: {error}. The package has: {', '.join(shipped())}"]
        ) from None


def _settings(settings: Sequence[str], problems: list[str]) -> list[dict[str, Any]]:
    changes = []
    for setting in settings:
        try:
            change = read_assignment(setting)
            if "variants" in change:
                problems.append(f"--set {setting!r}: a setting reaches every variant; change one of them in the recipe")
            else:
                changes.append(change)
        except ValueError:
            problems.append(f"--set {setting!r}: expected key=value, such as train.epochs=3")
    return changes


class _Plan(dict[str, Any]):
    """What a plan says: it takes the place of another plan, and is not mixed with it."""


def _read_plan(table: object, folder: Path) -> str:
    """Put what a plan says in place of its path, so that a run records the plan itself; or say why it cannot be read."""
    adapt = table.get("adapt") if isinstance(table, dict) else None
    if isinstance(adapt, dict) and isinstance(adapt.get("layers"), str):
        try:
            adapt["layers"] = _Plan(read_layers(folder / adapt["layers"]))
        except ConfigError as error:
            del adapt["layers"]
            return str(error).removeprefix("layers: ")
    return ""


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict) and not isinstance(value, _Plan):
            _overlay(below[key], value)
        else:
            below[key] = value


def _displace(below: object, above: object) -> None:
    """`rank` and `budget` give one size, of all layers or of some: take away the one that the other is about to replace."""
    if not isinstance(below, dict) or not isinstance(above, Mapping):
        return
    for key, other in (("rank", "budget"), ("budget", "rank")):
        if key in above and other not in above:
            below.pop(other, None)
    for key, value in above.items():
        _displace(below.get(key), value)
