"""Where backbones come from: one word for the library, one for the network."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Container
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tensornet.errors import BackboneError, bulleted, near
from tensornet.modules import modules_from_here
from tensornet.states import behind_prefix, differences, tensors

KINDS = ("hub", "python", "timm", "torchvision", "transformers")
HEADLESS = "AutoModel"
"""The class of transformers whose networks have no head."""


def load_backbone(
    source: str,
    *,
    root: str | Path = ".",
    pretrained: bool = True,
    options: dict[str, Any] | None = None,
    weights: str | None = None,
) -> nn.Module:
    """A backbone by name.

    Args:
        source: `hub:DIR:ENTRY` (a local torch.hub folder), `python:MODULE:FUNCTION`, `timm:NAME`, `torchvision:NAME` or
            `transformers:NAME_OR_DIR` for the network without a head, or `transformers:CLASS:NAME_OR_DIR`, such as
            `transformers:AutoModelForImageClassification:microsoft/resnet-50`, for that class of the library.
        root: relative folders in ``source`` and ``weights`` begin here.
        pretrained: whether the library should load its weights; `python:` functions decide themselves.
        options: keyword arguments for the function that builds it.
        weights: a safetensors file to load instead, with the keys of the network's state dict.

    Raises:
        BackboneError: there is no such library, network or file, or it cannot be built; the reason is given.
    """
    kind, _, rest = source.partition(":")
    makers: dict[str, Callable[[str, Path, bool, dict[str, Any]], Any]] = {
        "hub": _hub,
        "python": _python,
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": _transformers,
    }
    if kind not in makers or not rest:
        raise BackboneError(f"a backbone is named KIND:NAME with KIND one of {', '.join(KINDS)}; got {source!r}")
    try:
        with redirect_stdout(sys.stderr):  # what a constructor prints is no part of a table or of JSON
            backbone = makers[kind](rest, Path(root), pretrained and weights is None, options or {})
    except BackboneError:
        raise
    except ImportError as error:
        raise BackboneError(f"{source}: {error.name or error} cannot be imported: {error}") from error
    except Exception as error:  # code of others: whatever it raises is the reason
        raise BackboneError(f"{source} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(backbone, nn.Module):
        raise BackboneError(f"{source} made a {type(backbone).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(backbone, Path(root) / weights)
    return backbone


def load_weights(backbone: nn.Module, path: Path, optional: Container[str] = ()) -> None:
    """Fill a network from a safetensors file with the keys of its state dict; it may lack ``optional`` ones.

    Raises:
        BackboneError: it cannot be read, or does not fit; every key that does not is listed.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"weights {path} cannot be read: {error}") from None
    own = backbone.state_dict()
    wrong = differences({key: tensor for key, tensor in tensors(own).items() if key in state or key not in optional}, state)
    if wrong:
        lines = bulleted(wrong, 20) + f"\n{behind_prefix(tensors(own), state)}".rstrip()
        raise BackboneError(f"weights {path} do not fit the network:{lines}")
    backbone.load_state_dict(own | state)


def _hub(rest: str, root: Path, pretrained: bool, options: dict[str, Any]) -> Any:
    folder, _, entry = rest.rpartition(":")
    directory = root / folder
    if not (directory / "hubconf.py").is_file():
        raise BackboneError(
            f"hub:{rest}: there is no {directory / 'hubconf.py'}; write hub:DIR:ENTRY, DIR from {root.resolve()}"
        )
    return torch.hub.load(str(directory), entry, source="local", pretrained=pretrained, **options)


def _python(rest: str, root: Path, pretrained: bool, options: dict[str, Any]) -> Any:
    module_name, _, function = rest.partition(":")
    if not module_name or not function:
        raise BackboneError(f"python:{rest}: write python:MODULE:FUNCTION")
    with modules_from_here():
        module = importlib.import_module(module_name)
        if not hasattr(module, function):
            raise BackboneError(f"python:{rest}: {module_name} has no {function!r}. {near(function, vars(module))}")
        return getattr(module, function)(**options)  # which may import more from there


def _timm(rest: str, root: Path, pretrained: bool, options: dict[str, Any]) -> Any:
    import timm

    return timm.create_model(rest, pretrained=pretrained, **options)


def _torchvision(rest: str, root: Path, pretrained: bool, options: dict[str, Any]) -> Any:
    import torchvision

    return torchvision.models.get_model(rest, weights="DEFAULT" if pretrained else None, **options)


def class_and_checkpoint(rest: str) -> tuple[str, str]:
    """What follows `transformers:`, read as a class of the library and a checkpoint; without a class it is `HEADLESS`."""
    kind, _, name = rest.rpartition(":")
    return kind or HEADLESS, name


def _transformers(rest: str, root: Path, pretrained: bool, options: dict[str, Any]) -> Any:
    import transformers

    kind, name = class_and_checkpoint(rest)
    maker: Any = getattr(transformers, kind, None)
    if not hasattr(maker, "from_pretrained"):
        known = (own for own in dir(transformers) if own.startswith("AutoModel") or "For" in own)
        raise BackboneError(f"transformers:{rest}: transformers has no network {kind!r}. {near(kind, known)}")
    folder = root / name
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        return _of_checkpoint(maker, str(folder) if folder.is_dir() else name, pretrained, options)
    except OSError as error:
        if folder.is_dir():
            raise
        raise BackboneError(
            f"transformers:{rest}: there is no folder {folder}, nor a {name!r} on the Hub: {error}"
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _of_checkpoint(maker: Any, name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """A network of transformers with the weights of a checkpoint, or as its config says."""
    from transformers import AutoConfig

    if not pretrained:
        config = AutoConfig.from_pretrained(name, **options)
        return maker.from_config(config) if hasattr(maker, "from_config") else maker(config)
    network, told = maker.from_pretrained(name, output_loading_info=True, **options)
    own = [key for key, _ in network.named_parameters()]
    missing = [key for key in own if key in told["missing_keys"]]
    if 2 * len(missing) > len(own):
        raise BackboneError(
            f"{name} holds {len(own) - len(missing)} of the {len(own)} parameters of {type(network).__name__}, and not "
            f"{missing[0]!r}: it is of another class; AutoModelForImageClassification finds the one that it names"
        )
    return network
