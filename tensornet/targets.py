"""Which weights of a backbone get a delta, and where its head is."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from tensornet.config import NONE, AdaptConfig, Choice, Patterns
from tensornet.errors import ConfigError, TargetError, near
from tensornet.shapes import Shape


@dataclass(frozen=True)
class Target:
    """One weight of the backbone.

    Attributes:
        module, parameter: where it is, such as "layer1.0.conv1" and "weight".
        shape: of the weight.
        transposed: whether its first mode is C_in (transposed convolutions, `Conv1D` of transformers), not C_out.
        kernel: whether the modes after the first two are a convolution's kernel.
        order: place of the module in the network.
        tied: other places (module, parameter) that hold the same weight.
    """

    module: str
    parameter: str
    shape: Shape
    transposed: bool = False
    kernel: bool = False
    order: int = 0
    tied: tuple[tuple[str, str], ...] = field(default=())

    @property
    def name(self) -> str:
        """The module path, with the parameter where that is not `weight`."""
        if self.parameter == "weight":
            return self.module
        return self.key

    @property
    def key(self) -> str:
        """Of the weight in a state dict."""
        return key_of(self.module, self.parameter)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Every (module, parameter) that holds this weight."""
        return ((self.module, self.parameter), *self.tied)

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns are matched with: the path of every module that holds this weight, and its own name."""
        return tuple(dict.fromkeys([*(path for path, _ in self.places), self.name]))

    def weight_in(self, backbone: nn.Module) -> Tensor:
        """The backbone's own weight, whatever task is set."""
        weight = backbone.get_submodule(self.module)._parameters[self.parameter]
        assert weight is not None
        return weight

    def modes(self) -> dict[str, int]:
        """The modes of the weight by name: out, in and, for a convolution, kernel (k·k, also where k = 1)."""
        first, second, *kernel = self.shape
        out, into = (second, first) if self.transposed else (first, second)
        return {"out": out, "in": into} | ({"kernel": math.prod(kernel)} if self.kernel else {})


def key_of(module: str, parameter: str) -> str:
    """The key of a parameter in a state dict; the root has no name."""
    return f"{module}.{parameter}" if module else parameter


def matches(patterns: Patterns, path: str) -> bool:
    """Whether ``path`` ends in one of a list of names, or matches a regular expression as a whole."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith("." + name) for name in patterns)


def check_patterns(what: str, patterns: Patterns, paths: Iterable[str]) -> None:
    """Every pattern has to match something.

    Raises:
        TargetError: one is not a regular expression, or matches none of ``paths``; near names are listed.
    """
    known = list(paths)
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        one: Patterns = pattern if isinstance(patterns, str) else (pattern,)
        try:
            found = any(matches(one, path) for path in known)
        except re.error as error:
            raise TargetError(f"{what}: {pattern!r} is not a regular expression: {error}") from None
        if not found:
            raise TargetError(f"{what}: {pattern!r} matches no layer. {near(pattern, known)}")


def find_head(backbone: nn.Module, head: str | None) -> str | None:
    """The path of the head: the one asked for, or the last linear layer; None where there is none.

    Raises:
        TargetError: the backbone has no module of that path.
    """
    if head == NONE:
        return None
    modules = dict(backbone.named_modules())
    if head is not None:
        if head not in modules or head == "":
            raise TargetError(f"head: there is no module {head!r}. {near(head, modules)}")
        return head
    inside_attention = {id(m.out_proj) for m in modules.values() if isinstance(m, nn.MultiheadAttention)}
    linear = [p for p, m in modules.items() if isinstance(m, nn.Linear) and id(m) not in inside_attention and p]
    return linear[-1] if linear else None


def candidates(backbone: nn.Module) -> list[Target]:
    """Every weight that can have a delta, in network order; a tied weight once.

    Raises:
        TargetError: a lazy layer has no weight yet.
    """
    lazy = [
        path for path, m in backbone.named_modules() if any(map(is_lazy, [*m._parameters.values(), *m._buffers.values()]))
    ]
    if lazy:
        raise TargetError(f"{lazy[0]}: the layer is lazy and has no values yet; run the backbone once first")
    found: dict[int, Target] = {}
    for order, (path, module) in enumerate(backbone.named_modules()):
        for name in _weights(module):
            parameter = module._parameters[name]
            known = found.get(id(parameter))
            if known is not None:
                found[id(parameter)] = replace(known, tied=(*known.tied, (path, name)))
                continue
            found[id(parameter)] = Target(
                path,
                name,
                tuple(parameter.shape),
                transposed=is_transposed(module),
                kernel=isinstance(module, _ConvNd),
                order=order,
            )
    return list(found.values())


def select(backbone: nn.Module, config: AdaptConfig, head: str | None) -> list[tuple[Target, Choice]]:
    """The targets of a config, each with its choice of decomposition, in network order.

    Raises:
        ConfigError: a pattern of ``layers`` gives a size where the config's decomposition is "none".
        TargetError: a pattern matches nothing, nothing is left, a weight is complex, or an embedding renormalises its own.
    """
    every = candidates(backbone)
    computed = _computed(backbone, head)
    known = [*(name for target in every for name in target.names), *computed]
    if config.decomposition == NONE and not config.per_layer:
        return []
    if config.targets is None:
        chosen = [t for t in every if not _is_embedding(backbone, t) and not in_head(t, head)]
    else:
        check_patterns("targets", config.targets, known)
        chosen = [t for t in every if any(matches(config.targets, name) for name in t.names)]
        computed = [path for path in computed if matches(config.targets, path)]
    check_patterns("exclude", config.exclude, known)
    chosen = [t for t in chosen if not any(matches(config.exclude, name) for name in t.names)] if config.exclude else chosen
    computed = [path for path in computed if not (config.exclude and matches(config.exclude, path))]
    paths = [*(name for target in chosen for name in target.names), *computed]
    for pattern, own in config.per_layer.items():
        if own.decomposition is None and config.decomposition == NONE:
            raise ConfigError(
                f"layers[{pattern!r}] gives a size and no decomposition, and that of the config is 'none': give it "
                "one, as in {'decomposition': 'cp', 'rank': 4}, or leave the pattern out"
            )
        check_patterns("layers", pattern, known if own.decomposition == NONE else paths)
    selected = [(target, _choice(config, target.names)) for target in chosen]
    selected = [(target, choice) for target, choice in selected if choice.decomposition != NONE]
    for target, _ in selected:
        _refuse(backbone, target)
    _tell_computed([path for path in computed if _choice(config, [path]).decomposition != NONE], nothing_else=not chosen)
    if not chosen:
        hint = f" Its only linear layer {head!r} was taken as the head: pass head='none' to adapt it." if head else ""
        raise TargetError(f"nothing to adapt: the backbone has no convolution or linear layer left as a target.{hint}")
    return selected


def inside(path: str, head: str | None) -> bool:
    """Whether a module is the head, or lies in it."""
    return head is not None and (path == head or path.startswith(head + "."))


def in_head(target: Target, head: str | None) -> bool:
    """Whether a weight is of the head, or of a layer inside it."""
    return any(inside(path, head) for path, _ in target.places)


def _choice(config: AdaptConfig, names: Iterable[str]) -> Choice:
    """What a config says of a weight with these names: its last pattern that matches."""
    given = [own for pattern, own in config.per_layer.items() if any(matches(pattern, name) for name in names)]
    return given[-1].over(config.choice) if given else config.choice


def _tell_computed(paths: list[str], nothing_else: bool) -> None:
    """Warn of layers that were to have a delta and cannot; an error where there are no others."""
    if not paths:
        return
    why = (
        f"{', '.join(paths[:8])}: no delta can be added, as the weight is computed from other parameters "
        "(by weight_norm, spectral_norm, a parametrization or pruning); make it a plain weight first"
    )
    if nothing_else:
        raise TargetError(f"nothing to adapt: {why}")
    warnings.warn(f"{why}, or exclude it", stacklevel=3)


def _weights(module: nn.Module) -> Sequence[str]:
    """The parameters of one module that can have a delta; a weight computed from others cannot."""
    names: tuple[str, ...] = ()
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    elif isinstance(module, _ConvNd | nn.Linear | nn.Embedding) or _is_conv1d(module):
        names = ("weight",)
    return [name for name in names if module._parameters.get(name) is not None]


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight of a layer has C_in before C_out."""
    return isinstance(module, _ConvTransposeNd) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in transformers, which need not be installed."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _is_embedding(backbone: nn.Module, target: Target) -> bool:
    return all(isinstance(backbone.get_submodule(path), nn.Embedding) for path, _ in target.places)


def _computed(backbone: nn.Module, head: str | None) -> list[str]:
    """Convolutions and linear layers outside the head without a weight of their own: it is computed from others."""
    layers = [(path, m) for path, m in backbone.named_modules() if isinstance(m, _ConvNd | nn.Linear)]
    return [path for path, m in layers if m._parameters.get("weight") is None and not inside(path, head)]


def _refuse(backbone: nn.Module, target: Target) -> None:
    for path, name in target.places:
        module = backbone.get_submodule(path)
        weight = module._parameters[name]
        if weight is not None and weight.is_complex():
            raise TargetError(f"{target.name}: its numbers are complex, and those of a delta are real; exclude it")
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise TargetError(
                f"{path}: an embedding with max_norm={module.max_norm} rewrites its own weight in every forward, so it "
                "cannot stay frozen; exclude it, or set max_norm=None"
            )
