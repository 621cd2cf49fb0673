"""What to adapt and how, as data: frozen, checked, JSON both ways."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from tensornet.errors import ConfigError, TensornetError, near
from tensornet.registry import DECOMPOSITIONS, FOLDINGS
from tensornet.shapes import Rank, check_rank

Patterns = str | tuple[str, ...]
"""A list of names that end a module path, or one regular expression that matches the whole path."""

NONE = "none"
"""Where a decomposition is named: no delta."""


@dataclass(frozen=True)
class Choice:
    """How one tensor is decomposed: a decomposition with a rank or with a budget; unset parts come from the config.

    Attributes:
        decomposition: a registered name, "none" for no delta, or None.
        rank: as in `AdaptConfig`.
        budget: as in `AdaptConfig`.
    """

    decomposition: str | None = None
    rank: Rank | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.decomposition, str | None):
            raise ConfigError(f"decomposition must be a name; got {self.decomposition!r}")
        if self.decomposition not in (None, NONE):
            DECOMPOSITIONS.get(self.decomposition)
        if self.rank is not None:
            object.__setattr__(self, "rank", check_rank(self.rank))
        if self.rank is not None and self.budget is not None:
            raise ConfigError(f"give a rank or a budget, not both; got rank={self.rank} and budget={self.budget}")
        if self.budget is not None:
            ok = isinstance(self.budget, int | float) and not isinstance(self.budget, bool) and 0 < self.budget <= 1
            if not ok:
                raise ConfigError(f"budget must be a share of the dense parameters, in (0, 1]; got {self.budget!r}")

    def over(self, default: Choice) -> Choice:
        """This choice with what it leaves unset taken from ``default``."""
        sized = self if self.rank is not None or self.budget is not None else default
        return Choice(self.decomposition or default.decomposition, sized.rank, sized.budget)


@dataclass(frozen=True, eq=False)
class AdaptConfig:
    """Which weights of a backbone get a delta, and how it is stored.

    `AdaptConfig(decomposition="cp", rank=R)` is the method of Factorized Tensor Networks (arXiv 2310.06124).

    Attributes:
        decomposition: a registered name, or "none" for no deltas at all.
        rank: the CP rank, or every Tucker or TT rank clipped to what the shape allows; a tuple has to fit.
            8 where neither rank nor budget is given.
        budget: instead of a rank, the share in (0, 1] of the dense tensor's parameters that a delta may have.
        targets: the layers that get a delta: a list of names that end their paths, or one regular expression for the
            whole path; None: every convolution and linear layer but the head.
        exclude: layers that do not, in the same form.
        layers: regular expression for the whole path → `Choice`, a dict of its fields, or a decomposition's name;
            the last match wins. Or the path of a TOML file with such a table `layers`, as `Plan.save` writes it; its
            contents are taken, and the file is not needed again.
        folding: which weights make up one tensor: "layer" or "depth" or a registered name.
        norms: "task": every normalisation layer is the task's own; "shared": none; or patterns of those that are.
        head: path of the head; None: the last linear layer; "none": the backbone has no head to replace.
        scale: the delta is multiplied by it.

    Raises:
        ConfigError: a value is not one of these; it names the field.
        UnknownNameError: a decomposition or a folding is not registered.
    """

    decomposition: str = "cp"
    rank: Rank | None = None
    budget: float | None = None
    targets: Patterns | None = None
    exclude: Patterns = ()
    layers: Mapping[str, Choice] | str | Path = field(default_factory=dict)
    folding: str = "layer"
    norms: Literal["task", "shared"] | Patterns = "task"
    head: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        if not isinstance(self.decomposition, str):
            raise ConfigError(f"decomposition must be a name; got {self.decomposition!r}")
        choice = Choice(self.decomposition, self.rank, self.budget)
        set_field(self, "rank", 8 if choice.rank is None and choice.budget is None else choice.rank)
        if not isinstance(self.folding, str):
            raise ConfigError(f"folding must be a name; got {self.folding!r}")
        FOLDINGS.get(self.folding)
        for name in ("targets", "exclude", "norms"):
            set_field(self, name, _patterns(name, getattr(self, name)))
        layers = read_layers(self.layers) if isinstance(self.layers, str | Path) else self.layers
        if not isinstance(layers, Mapping):
            raise ConfigError(f"layers must map patterns to choices, or be the path of a plan; got {layers!r}")
        set_field(self, "layers", {pattern: _choice(pattern, given) for pattern, given in layers.items()})
        if self.head is not None and not isinstance(self.head, str):
            raise ConfigError(f"head must be the path of a module, or 'none'; got {self.head!r}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise ConfigError(f"scale must be a finite number; got {self.scale!r}")
        if self.scale == 0:
            raise ConfigError("scale must not be 0: the deltas would never train; use decomposition='none' for no deltas")
        set_field(self, "scale", float(self.scale))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdaptConfig) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash(self._settings())

    def _settings(self) -> tuple[Any, ...]:
        """All fields, `layers` in its order: the last match wins."""
        others = [getattr(self, f.name) for f in fields(self) if f.name != "layers"]
        return *others, *self.per_layer.items()

    @property
    def choice(self) -> Choice:
        """The choice for every layer that `layers` does not name."""
        return Choice(self.decomposition, self.rank, self.budget)

    @property
    def per_layer(self) -> Mapping[str, Choice]:
        """`layers`: a choice per pattern, also where it was given as a file."""
        assert isinstance(self.layers, Mapping)
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        data = asdict(self)
        data["layers"] = {
            pattern: {key: value for key, value in choice.items() if value is not None}
            for pattern, choice in data["layers"].items()
        }
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The config that ``to_dict`` wrote.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"a config is a table of settings; got {data!r}")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown setting {key!r}. {near(str(key), known, limit=20)}")
        return cls(**data)

    @classmethod
    def mistakes(cls, data: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str]]:
        """What is wrong with what `from_dict` is to take, each with the keys that lead to it; nothing where it takes it.

        Every setting is looked at alone, every layer too, and those that are right are looked at together.
        """
        layers = data.get("layers")
        parts: list[tuple[tuple[str, ...], dict[str, Any]]] = [((key,), {key: data[key]}) for key in data]
        if isinstance(layers, Mapping):
            parts = [part for part in parts if part[0] != ("layers",)]
            parts += [(("layers", str(pattern)), {"layers": {pattern: given}}) for pattern, given in layers.items()]
        found = list(_refused(cls, parts))
        wrong = {path[0] for path, _ in found}
        return [*found, *_refused(cls, [((), {key: value for key, value in data.items() if key not in wrong})])]

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that ``to_json`` wrote.

        Raises:
            ConfigError: not JSON, an unknown key, or a value that is not allowed.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"a config in JSON was expected: {error}") from None
        return cls.from_dict(data)


def read_layers(path: str | Path) -> dict[str, Any]:
    """The table `layers` of a TOML file.

    Raises:
        ConfigError: it cannot be read, or has no such table.
    """
    try:
        with open(path, "rb") as file:
            layers = tomllib.load(file)["layers"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"layers: {path} is no plan, a TOML file with a table [layers]: {error!r}") from None
    if not isinstance(layers, dict):
        raise ConfigError(f"layers: {path} is no plan: its 'layers' is {layers!r}, not a table")
    return layers


def check_config(config: object) -> None:
    """A config has to be an `AdaptConfig`.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(config, AdaptConfig):
        raise ConfigError(f"a config is an AdaptConfig (AdaptConfig.from_dict makes one of a dict); got {config!r}")


def _refused(
    cls: type[AdaptConfig], parts: Sequence[tuple[tuple[str, ...], dict[str, Any]]]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for path, settings in parts:
        try:
            cls.from_dict(settings)
        except TensornetError as error:
            yield path, str(error).removeprefix(f"layers[{path[-1]!r}]: " if path else "")


def _patterns(name: str, given: object) -> Patterns | None:
    if given is None and name == "targets":
        return None
    if isinstance(given, str):
        return given
    if isinstance(given, Sequence) and all(isinstance(pattern, str) for pattern in given):
        return tuple(given)
    raise ConfigError(f"{name} must be a list of names or one regular expression; got {given!r}")


def _choice(pattern: object, given: object) -> Choice:
    if not isinstance(pattern, str):
        raise ConfigError(f"layers: a pattern is a string; got {pattern!r}")
    if isinstance(given, Choice):
        return given
    if isinstance(given, str):
        return Choice(given)
    if isinstance(given, Mapping):
        known = [f.name for f in fields(Choice)]
        unknown = [key for key in given if key not in known]
        if unknown:
            raise ConfigError(f"layers[{pattern!r}]: unknown setting {unknown[0]!r}. {near(str(unknown[0]), known)}")
        try:
            return Choice(**given)
        except ConfigError as error:
            raise type(error)(f"layers[{pattern!r}]: {error}") from None
    raise ConfigError(f"layers[{pattern!r}] must be a table with decomposition and rank, or a name; got {given!r}")
