"""Train the backbone, adapt it in several ways to every domain, and collect what each way costs and brings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from safetensors.torch import save

from tensornet.atomic import make_folder, write_file
from tensornet.config import AdaptConfig
from tensornet.data.images import Images
from tensornet.demo.backbone import SmallResNet
from tensornet.demo.digits import DOMAINS, SIZE, handwritten, printed, rendered
from tensornet.network import adapt
from tensornet.training.adapting import Row, result, train_task
from tensornet.training.fit import fit
from tensornet.training.recipe import Input, Train

IMAGE = Input(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
SOURCE = Train.model_validate({"epochs": 4, "lr": 1e-2, "flip": False, "pad": 2})
TASK = Train.model_validate({"epochs": 8, "lr": 1e-2, "flip": False, "pad": 2})
FULL = TASK.model_copy(update={"method": "full", "lr": 3e-3})

NAMES = ("handwritten", *DOMAINS)
"""Of the domains."""

KEPT = "FTN, CP rank 4"
METHODS: dict[str, tuple[AdaptConfig, Train]] = {
    "head": (AdaptConfig("none", norms="shared"), TASK),
    "norm + head": (AdaptConfig("none"), TASK),
    "FTN, CP rank 1": (AdaptConfig("cp", rank=1), TASK),
    KEPT: (AdaptConfig("cp", rank=4), TASK),
    "FTN, CP rank 16": (AdaptConfig("cp", rank=16), TASK),
    "full fine-tuning": (AdaptConfig("none"), FULL),
}


def run(out: Path, say: Callable[[str], None], domains: Mapping[str, tuple[Images, Images]]) -> list[Row]:
    """The whole demo.

    Args:
        out: folder for `backbone.safetensors`, `tasks/NAME/`, and `results.json`.
        say: told what begins.
        domains: by name, images for training and for test.

    Returns:
        One row per method and domain, as in the `results.json` of a recipe.
    """
    make_folder(out)
    say("rendering printed digits and training the backbone on them")
    L.seed_everything(0, verbose=False)
    backbone = SmallResNet()
    train, test = (Images(rendered(printed, n, seed, seed == 1), SIZE) for n, seed in ((5000, 0), (500, 1)))
    source = fit(backbone, backbone, train, test, SOURCE, IMAGE, 0, progress=False)
    say(f"  {100 * source.accuracy:.1f} % of printed digits in unseen fonts; from here on the backbone is frozen")
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    write_file(out / "backbone.safetensors", save(state))
    rows: list[Row] = []
    for name, (domain_train, domain_test) in domains.items():
        say(f"{name}: {len(METHODS)} ways to adapt")
        rows += [_adapted(state, name, method, domain_train, domain_test, out) for method in METHODS]
        write_file(out / "results.json", json.dumps({"format": "tensornet-results", "runs": rows}, indent=1) + "\n")
    return rows


def rendered_domains(names: Sequence[str]) -> dict[str, tuple[Images, Images]]:
    """Training and test images of domains: 1,000 and 500, rendered; of handwritten digits 1,297 and 500, real."""
    return {name: _images(name) for name in names}


def _images(name: str) -> tuple[Images, Images]:
    if name not in DOMAINS:
        train, test = handwritten()
    else:
        i = list(DOMAINS).index(name)
        train, test = rendered(DOMAINS[name], 1000, 10 + i), rendered(DOMAINS[name], 500, 20 + i, test=True)
    return Images(train, SIZE), Images(test, SIZE)


def _adapted(state: dict[str, Any], name: str, method: str, train: Images, test: Images, out: Path) -> Row:
    config, settings = METHODS[method]
    backbone = SmallResNet()
    backbone.load_state_dict(state)
    net = adapt(backbone, config, name="python:tensornet.demo.backbone:SmallResNet")
    adapted = train_task(net, name, train, test, settings, IMAGE, seed=1, progress=False)
    if method == KEPT:
        net.save_task(name, out / "tasks" / name)
    return result(method, net, name, settings, 1, adapted)
