"""What recipes can say of training, each beside what it should do."""

import copy
import json
import shutil
import sys
import types
from collections import namedtuple
from typing import get_args

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import ValidationError
from torch import nn
from typer.testing import CliRunner

import tensornet as tn
from analysis.ranks import rank_recipes
from analysis.selection.setting import Setting
from tensornet.cli import app
from tensornet.config import Choice
from tensornet.data.augment import mixed_pairs
from tensornet.data.sources import Split, held_out
from tensornet.errors import ConfigError, DataError, RecipeError, WriteError
from tensornet.peers import PEERS, norms_and_head, with_peer
from tensornet.training import fit
from tensornet.training import grid as grid_module
from tensornet.training.adapting import train_task
from tensornet.training.grid import Grid
from tensornet.training.optimizer import groups
from tensornet.training.reading import load_recipe
from tensornet.training.recipe import Input, Train
from tensornet.training.recorded import recorded_recipes
from tensornet.training.start import begin, initial_norm, probe, take_factors
from tests.commands import ran, refused, tensornet
from tests.toys import ResNet

IMAGE = Input(size=12)


def settings(**words):
    return Train.model_validate({"epochs": 2, "batch_size": 8, "lr": 1e-2, "flip": False} | words)


@pytest.fixture
def net(data_root):
    return tn.adapt(tn.load_backbone("hub:hub:tiny", root=data_root), tn.AdaptConfig("cp", rank=3))


@pytest.fixture(scope="module")
def images(data_root):
    grid = Grid(load_recipe(str(data_root / "recipe.toml")), data_root, data_root / "unused")
    return grid.data.images(grid.runs[0])


def test_held_out_images_are_a_share_of_every_class_and_the_rest_is_trained_on():
    labels = [i % 3 for i in range(30)]
    split = Split("here", [bytes([i]) for i in range(30)], labels, ("a", "b", "c"))
    rest, held = held_out(split, 0.2)
    assert sorted([*rest.images, *held.images]) == list(split.images)
    assert [held.labels.count(label) for label in range(3)] == [2, 2, 2]
    assert all(
        labels[image[0]] == label for part in (rest, held) for image, label in zip(part.images, part.labels, strict=True)
    )
    assert held_out(split, 0.2) == (rest, held)
    with pytest.raises(DataError, match="leaves no image of 'a'"):
        held_out(split, 0.99)
    with pytest.raises(DataError, match="is none"):
        held_out(split, 0.01)


def test_a_run_with_a_holdout_never_sees_the_test_split(data_root, tmp_path):
    recipes = load_recipe(str(data_root / "recipe.toml"), ["train.holdout=0.25"])
    grid = Grid(recipes, data_root, tmp_path)
    train, scored = grid.data.images(grid.runs[0])
    assert (len(train), len(scored)) == (36, 12)
    whole = grid.data.splits(grid.runs[0].task)[0]
    assert set(train.split.images) | set(scored.split.images) == set(whole.images)
    held = ("--set", "train.holdout=0.25", "--set", "train.epochs=1")
    said = ran("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, "--task", "folders", *held)
    assert "Accuracy on holdout, percent" in said
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["split"] == "holdout"


def test_rates_reach_the_parameters_that_they_name(net):
    task = net.add_task("a", nn.Linear(32, 2))
    made = groups(task, settings(lr=0.5, rates={"zero": 4, "norms": 2, "head": 3}))
    lr = {id(p): group["lr"] for group in made for p in group["params"]}
    for name, parameter in task.named_parameters():
        kind = name.partition(".")[0]
        wanted = {"norms": 1.0, "head": 1.5}.get(kind, 0.5)
        if kind == "deltas" and name.endswith(next(iter(task.tensors()))[1].zero):
            wanted = 2.0
        assert lr[id(parameter)] == wanted, name
    assert [group["lr"] for group in groups(nn.Linear(2, 2), settings(lr=0.5, rates={"head": 3}))] == [0.5]


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_rates_are_kept_by_the_schedule(schedule, net, images):
    words = {"schedule": schedule, "rates": {"zero": 1e-9, "factors": 1e-9, "norms": 1e-9}}
    moved, kept = (
        train_task(net, name, *images, settings(**words, lr=lr), IMAGE, 0, progress=False).model[name]
        for name, lr in (("moved", 1e-2), ("kept", 1e-12))
    )
    assert all(module.norm() < 1e-6 for _, module in moved.tensors())
    assert not torch.allclose(moved.head.weight, kept.head.weight, atol=1e-3), "both heads start from the same seed"


def test_a_probe_is_a_logistic_regression():
    torch.manual_seed(0)
    features = torch.randn(200, 4)
    labels = (features[:, 1] > 0.3).long()
    head = nn.Linear(4, 2)
    probe(head, features, labels)
    assert (head(features).argmax(1) == labels).float().mean() > 0.95
    from sklearn.linear_model import LogisticRegression

    peer = LogisticRegression(C=2 / (200 * 1e-3), tol=1e-8, max_iter=5000).fit(features, labels)
    ours = (head.weight[1] - head.weight[0]).detach()
    assert torch.allclose(ours / ours.norm(), torch.tensor(peer.coef_[0] / (peer.coef_**2).sum() ** 0.5).float(), atol=2e-3)


def test_a_probed_head_is_better_than_a_random_one_before_any_step(net, images):
    from tensornet.training.fit import evaluate

    net.add_task("a", nn.Linear(32, 2))
    net.set_task("a")
    random = evaluate(net, images[0], IMAGE)
    begin(net, "a", images[0], settings(head="probe"), IMAGE, 0)
    assert evaluate(net, images[0], IMAGE) > max(random, 0.9)


@pytest.mark.parametrize("start", ["backbone", "gradients"])
@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt"])
def test_a_start_leaves_deltas_at_zero_and_norms_as_expected(start, decomposition, net, images):
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    task = net.add_task("a", nn.Linear(32, 2), tn.AdaptConfig(decomposition, rank=3))
    random = [f.clone() for _, module in task.tensors() for f in module.factors().values()]
    net.set_task("a")
    begin(net, "a", images[0], settings(start=start), IMAGE, 0)
    for _, module in task.tensors():
        assert module.norm() == 0
        for name, factor in module.factors().items():
            if name != module.zero:
                assert torch.isclose(factor.norm(), torch.tensor(initial_norm(module, name)), rtol=1e-5)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(random, (f for _, m in task.tensors() for f in m.factors().values()), strict=True)
    )
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())


def test_a_start_of_factors_is_nothing_to_a_whole_copy(net, images, monkeypatch):
    monkeypatch.setattr("tensornet.training.start.take_factors", lambda *_: pytest.fail("there are no factors to train"))
    net.add_task("a", nn.Linear(32, 2))
    net.set_task("a")
    begin(net, "a", images[0], settings(start="backbone", method="full"), IMAGE, 0)


def test_factors_from_a_tensor_span_it(net):
    """The first step along the factor that starts at zero goes where the tensor points."""
    task = net.add_task("a", nn.Linear(32, 2), tn.AdaptConfig("cp", rank=1))
    plan, module = next(task.tensors())
    wanted = torch.einsum("or,ir,kr->oik", torch.randn(6, 1), torch.randn(3, 1), torch.randn(9, 1))
    tensors = {p.fold.name: torch.randn(p.shape) for p, _ in task.tensors()} | {plan.fold.name: wanted}
    take_factors(task, tensors, 0)
    (module.to_tensor() * wanted).sum().backward()
    with torch.no_grad():
        module.get_parameter(module.zero).add_(module.get_parameter(module.zero).grad)
    cosine = (module.to_tensor() * wanted).sum() / module.to_tensor().norm() / wanted.norm()
    assert cosine > 0.999


def test_the_squared_norm_is_that_of_the_deltas(net):
    task = net.add_task("a", nn.Linear(32, 2), tn.AdaptConfig("cp", rank=3, scale=0.5))
    with torch.no_grad():
        for _, module in task.tensors():
            module.get_parameter(module.zero).normal_()
    dense = sum(task.delta(plan.fold.name).square().sum() for plan, _ in task.tensors())
    assert torch.isclose(task.squared_norm(), dense)
    task.squared_norm().backward()
    grads = [p.grad.clone() for p in task.deltas.parameters()]
    task.zero_grad()
    sum(task.delta(plan.fold.name).square().sum() for plan, _ in task.tensors()).backward()
    assert all(torch.allclose(a, b.grad, atol=1e-5) for a, b in zip(grads, task.deltas.parameters(), strict=True))


def test_delta_decay_keeps_deltas_small(net, images):
    norms = []
    for i, decay in enumerate((0.0, 10.0)):
        train_task(net, f"t{i}", *images, settings(epochs=4, delta_decay=decay), IMAGE, 0, progress=False)
        norms.append(net[f"t{i}"].squared_norm().item())
    assert norms[1] < norms[0] / 10


def test_the_average_is_that_of_the_last_steps(net, images, monkeypatch):
    from tensornet.training.fit import Classifier

    seen = []
    original = Classifier.on_train_batch_end

    def watched(self, *args):
        seen.append(self._trained[0].head.weight.detach().clone())
        original(self, *args)

    monkeypatch.setattr(Classifier, "on_train_batch_end", watched)
    train_task(net, "a", *images, settings(average=0.5), IMAGE, 0, progress=False)
    half = torch.stack(seen[len(seen) // 2 :])
    assert torch.allclose(net["a"].head.weight, half.mean(0), atol=1e-6)
    assert not torch.allclose(net["a"].head.weight, seen[-1], atol=1e-6)


def test_an_average_has_statistics_of_its_own(net, images):
    train_task(net, "a", *images, settings(average=0.5, batch_size=48), IMAGE, 0, progress=False)
    train_task(net, "b", *images, settings(average=0.5, batch_size=48, statistics="anew"), IMAGE, 0, progress=False)
    for own, anew in zip(net["a"].own_norms().values(), net["b"].own_norms().values(), strict=True):
        torch.testing.assert_close(own.running_mean, anew.running_mean)


def test_an_interrupt_while_scoring_is_one(net, images, monkeypatch):
    def stopped(*args):
        raise SystemExit(1)

    monkeypatch.setattr(fit.Classifier, "test_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_task(net, "a", *images, settings(), IMAGE, 0, progress=False)


@pytest.mark.parametrize("when", ["in the last epoch", "after it"])
def test_a_run_that_was_stopped_ends_as_it_would_have(when, data_root, images, tmp_path, monkeypatch):
    step = fit.Classifier.training_step

    def stopped(*args):
        raise KeyboardInterrupt

    def stopped_late(module, *args):
        return stopped() if module.current_epoch == 2 else step(module, *args)

    def run(name, checkpoints):
        return train_task(network, name, *images, words, IMAGE, 0, checkpoints=checkpoints, progress=False)

    backbone = nn.Sequential(nn.Dropout(0.5), tn.load_backbone("hub:hub:tiny", root=data_root))
    network, words = tn.adapt(backbone, tn.AdaptConfig("cp", rank=2)), settings(epochs=3, average=0.5)
    whole = run("whole", None)
    place = (fit, "score", stopped) if when == "after it" else (fit.Classifier, "training_step", stopped_late)
    with monkeypatch.context() as patch:
        patch.setattr(*place)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", tmp_path)
    again = run("again", tmp_path)
    assert (again.fitted.loss, again.fitted.accuracy) == (whole.fitted.loss, whole.fitted.accuracy)
    for (name, p), q in zip(network["whole"].named_parameters(), network["again"].parameters(), strict=True):
        assert torch.equal(p, q), name


def test_settings_that_reach_no_variant_or_displace_one_another(data_root, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text((data_root / "recipe.toml").read_text() + "[variants.a]\nadapt = { budget = 0.5 }\n[variants.b]\n")
    recipes = load_recipe(str(recipe))
    assert (recipes["a"].config.rank, recipes["a"].config.budget) == (None, 0.5)
    assert recipes["b"].config.rank == 2
    ranked = load_recipe(str(recipe), ["adapt.rank=3"])
    assert [r.config.rank for r in ranked.values()] == [3, 3]
    layers = '[variants.c]\nadapt = { layers = { ".*" = { budget = 0.5 } } }\n'
    layers += "[variants.d]\nbackbone = { options = { rank = 1 } }\n"
    base = recipe.read_text().replace("rank = 2", 'rank = 2\nlayers = { ".*" = { rank = 1 } }')
    recipe.write_text(base.replace("[input]", "options = { budget = 9 }\n[input]") + layers)
    changed = load_recipe(str(recipe))
    assert changed["c"].config.per_layer[".*"] == Choice(None, None, 0.5)
    assert changed["d"].backbone.options == {"budget": 9, "rank": 1}, "only those of [adapt] are sizes"
    with pytest.raises(RecipeError, match="a setting reaches every variant"):
        load_recipe(str(recipe), ["variants.a.train.lr=9.0"])


@pytest.mark.parametrize("problem", ["one class", "auxiliary"])
def test_what_would_fail_after_the_first_epoch_is_seen_before(problem, data_root, tmp_path, monkeypatch):
    if problem == "one class":
        for split in ("train", "test"):
            shutil.copytree(data_root / "folders" / split, tmp_path / "folders" / split)
            for other in sorted((tmp_path / "folders" / split).iterdir())[1:]:
                shutil.rmtree(other)
        words = "there is one class alone"
    else:
        shutil.copytree(data_root / "folders", tmp_path / "folders")
        forward = type(tn.load_backbone("hub:hub:tiny", root=data_root)).forward

        Outputs = namedtuple("Outputs", "logits aux_logits")  # as torchvision's GoogLeNet has it

        def odd(self, x):
            y = forward(self, x)
            return Outputs(y, y) if self.training else y

        original = grid_module.load_backbone

        def loaded(*args, **options):
            backbone = original(*args, **options)
            backbone.forward = types.MethodType(odd, backbone)
            return backbone

        monkeypatch.setattr(grid_module, "load_backbone", loaded)
        words = "in train mode it gives a Outputs"
    shutil.copytree(data_root / "hub", tmp_path / "hub")
    with pytest.raises(RecipeError, match=words):
        Grid(load_recipe(str(data_root / "recipe.toml")), tmp_path, tmp_path / "out", ["folders"])


def test_statistics_anew_are_means_over_the_training_images(net, images):
    words = {"statistics": "anew", "rates": {"zero": 1e-9, "factors": 1e-9, "norms": 1e-9, "head": 1e-9}, "batch_size": 48}
    train_task(net, "a", *images, settings(**words), IMAGE, 0, progress=False)
    norm = next(iter(net["a"].own_norms().values()))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE.mean, IMAGE.std))
    pixels = images[0].__getitems__(range(48))[0].float() / 255
    first = net.backbone[0]._parameters["weight"]
    wanted = nn.functional.conv2d((pixels - mean) / std, first, None, 2, 1).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, wanted, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_peers_train_what_is_theirs_and_leave_the_rest(name):
    backbone = ResNet().requires_grad_(True)
    weights = [m.weight.detach().clone() for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    x = torch.randn(4, 3, 16, 16)
    wanted = backbone.eval()(x)
    model = with_peer(name, backbone, 2, "fc")
    assert torch.allclose(model.eval()(x), wanted, atol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    shared = {id(p) for p in norms_and_head(ResNet(), "fc")}
    assert len(trained) > len(shared)
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    start = [p.detach().clone() for p in trained]
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert not any(torch.equal(p, before) for p, before in zip(trained, start, strict=True))
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(any(torch.equal(weight, p) for p in frozen) for weight in weights)


@pytest.mark.parametrize("name", ["peft-lora", "peft-lokr", "peft-loha"])
def test_an_option_that_a_peer_does_not_know_is_refused_before_the_first_training(name, data_root, tmp_path):
    words = ("--set", f"train.method={name}", "--set", "train.peer.lora_alhpa=3")
    said = refused("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, *words)
    assert f"the peer {name} cannot be made with the options lora_alhpa" in said


def test_recipes_know_every_peer():
    assert {"adapt", "full", *PEERS} == set(get_args(Train.model_fields["method"].annotation))


def test_a_peer_from_the_command_line(data_root, tmp_path):
    args = ("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, "--task", "folders", "--json")
    (row,) = json.loads(tensornet(*args, "--set", "train.method=peft-lora", "--set", "train.peer.use_rslora=true"))
    assert row["value"] > 0.8
    assert row["method"] == row["decomposition"] == "peft-lora"
    counts = row["parameters"]
    assert counts == {"deltas": 2 * (27 + 6) + 2 * (54 + 8), "norms": 28, "head": 66, "total": 284}
    assert (tmp_path / "models/folders.safetensors").is_file()
    recipes = load_recipe(
        str(data_root / "recipe.toml"), ["train.method='peft-lora'", "adapt.decomposition='tucker'", "adapt.rank=[2,2,2]"]
    )
    with pytest.raises(RecipeError, match="have one rank"):
        Grid(recipes, data_root, tmp_path / "other", ["folders"])


def test_a_peer_that_is_not_installed_is_known_before_the_first_training(data_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refused("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path / "out", "--set",
                   "train.method=peft-lora")  # fmt: skip
    assert "the peer peft-lora needs the extra 'bench'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ['norms="shared"', 'targets=["0"]', 'exclude=["0"]', "scale=2", 'folding="depth"'])
def test_what_a_peer_cannot_be_told_is_refused(setting, data_root, tmp_path):
    words = ("--set", "train.method=peft-lora", "--set", f"adapt.{setting}", "--check")
    said = refused("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path / "out", *words)
    assert f"beside norms of the task's own; leave out adapt.{setting.partition('=')[0]}" in said


@pytest.mark.parametrize("start", ["backbone", "gradients", "teacher", "teachers"])
def test_a_start_is_of_adapted_tasks(start):
    with pytest.raises(ValidationError, match=f'start = "{start}" needs the method "adapt"'):
        settings(method="peft-lora", start=start)
    assert settings(method="full", start=start).start == "random", "a setting reaches every variant"


def test_the_table_has_means_over_seeds_and_their_spread():
    from tensornet.training.table import table

    common = {"decomposition": "cp", "rank": 1, "trainable_parameters": 10, "ratio": 0.1, "seconds": 1.0}
    scores = {("a", 0): 0.5, ("b", 0): 0.7, ("a", 1): 0.6, ("b", 1): 0.8, ("a", 2): 0.7}
    rows = [common | {"variant": "x", "task": t, "seed": s, "value": v} for (t, s), v in scores.items()]
    rows += [common | {"variant": "y", "task": t, "seed": 0, "value": 0.5} for t in "ab"]
    header, (x, y) = table(rows)
    assert header[:4] == ["method", "a", "b", "mean"]
    assert x[:4] == ["x", "60.0", "75.0", "67.5 ± 7.1"]  # of the seeds 0 and 1: 60 and 70
    assert y[:4] == ["y", "50.0", "50.0", "50.0"]
    bare = common | {"variant": "", "task": "a", "seed": 0, "value": 0.5, "decomposition": "none", "rank": None}
    for deltas, label in ((0, "none"), (12, "per layer")):  # of norms and head alone; of a plan
        assert table([bare | {"parameters": {"deltas": deltas}}])[1][0][0] == label


TAUGHT = """
[variants.full]
train = { method = "full", lr = 5e-3 }
[variants.taught]
train = { distill = { teacher = "full", weight = 1.0 } }
"""


def test_a_student_learns_from_another_variant_which_is_trained_first(data_root, tmp_path):
    (tmp_path / "r.toml").write_text((data_root / "recipe.toml").read_text() + TAUGHT)
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--task", "folders")
    checked = ran(*args, "--variant", "taught", "--check", "--json")
    assert {key: json.loads(checked)[key] for key in ("runs", "done", "teachers")} == {"runs": 1, "done": 0, "teachers": 1}
    assert json.loads(ran(*args, "--check", "--json"))["teachers"] == 0, "it is one of the runs"
    done = CliRunner().invoke(app, [*map(str, args), "--variant", "taught", "--json"])
    assert "1 run, 0 done;" in done.stderr
    assert "\n1 more to train first, to learn from: full folders seed 0\n" in done.stderr
    assert json.loads(ran(*args, "--variant", "taught", "--check", "--json"))["teachers"] == 0
    rows = json.loads(done.stdout)
    assert [row["variant"] for row in rows] == ["full", "taught"]
    assert "[1/1] taught folders seed 0\n  first a teacher: full folders seed 0, once\n" in done.stderr
    assert rows[1]["value"] > 0.85
    assert (tmp_path / "out/taught/tasks/folders/task.json").is_file()
    # of a grid that goes on from its results alone, the teacher is trained again
    shutil.rmtree(tmp_path / "out/full")
    assert json.loads(ran(*args, "--variant", "taught", "--check", "--json"))["teachers"] == 0, "nothing learns from it"
    (tmp_path / "out/runs/taught/folders/seed-0.json").unlink()
    assert json.loads(ran(*args, "--variant", "taught", "--check", "--json"))["teachers"] == 1
    again = json.loads(ran(*args, "--variant", "taught", "--json"))
    assert [row["value"] for row in again] == [row["value"] for row in rows]


def test_what_a_student_learns_from_is_part_of_its_settings(data_root, tmp_path):
    digests = []
    for lr in ("5e-3", "6e-3"):
        (tmp_path / "r.toml").write_text((data_root / "recipe.toml").read_text() + TAUGHT.replace("5e-3", lr))
        grid = Grid(load_recipe(str(tmp_path / "r.toml")), data_root, tmp_path / "out", ["folders"], ["taught"])
        digests.append(grid.runs[0].digest)
    assert digests[0] != digests[1]
    setting = Setting(str(tmp_path / "r.toml"), "taught", "folders", data_root, 8)
    assert [len(x) for x in setting.inputs()] == [8]


class Scaled(nn.Module):
    """A network with its logits times a number: a negative one swaps two classes."""

    def __init__(self, inner, scale):
        super().__init__()
        self.inner = inner
        self.scale = scale

    def forward(self, x):
        return self.scale * self.inner(x)


def test_what_is_learnt_is_the_teachers_not_the_labels(net, images):
    """A teacher that swaps the classes makes a student that swaps them."""
    from tensornet.training.fit import evaluate

    taught = train_task(net, "teacher", *images, settings(epochs=6), IMAGE, 0, progress=False)
    assert taught.fitted.accuracy > 0.85
    how = settings(epochs=6, distill={"teacher": "any", "weight": 1.0})
    teacher = Scaled(net.merged("teacher"), -10)
    student = train_task(net, "student", *images, how, IMAGE, 0, teachers=[teacher], progress=False)
    assert student.fitted.accuracy < 0.2
    assert evaluate(teacher, images[1], IMAGE) < 0.2


def test_of_several_teachers_the_mean_of_their_logits_is_learnt(net, images):
    """Two that know nothing outvote one that swaps the classes, unless it is surer than both."""
    taught = train_task(net, "teacher", *images, settings(epochs=6), IMAGE, 0, progress=False)
    how = settings(epochs=6, distill={"teacher": "any", "weight": 1.0})
    scores = []
    for surer in (1, 10):
        teachers = [Scaled(net.merged("teacher"), scale) for scale in (2, -surer, 2)]
        name = f"student{surer}"
        scores.append(train_task(net, name, *images, how, IMAGE, 0, teachers=teachers, progress=False).fitted.accuracy)
    assert taught.fitted.accuracy > 0.85 < scores[0]
    assert scores[1] < 0.2


def test_the_teachers_of_several_seeds_are_trained_once_and_are_part_of_the_settings(data_root, tmp_path):
    text = (data_root / "recipe.toml").read_text().replace("epochs = 6", "epochs = 1\nseeds = [0, 1]") + TAUGHT
    (tmp_path / "one.toml").write_text(text)
    (tmp_path / "r.toml").write_text(text.replace('"full", weight', '"full", seeds = [0, 1], weight'))
    args = (data_root, tmp_path / "out", ["folders"], ["taught"])
    one, both = (Grid(load_recipe(str(tmp_path / name)), *args) for name in ("one.toml", "r.toml"))
    assert [[teacher.seed for teacher in run.teachers] for run in one.runs] == [[0], [1]]
    assert [[teacher.seed for teacher in run.teachers] for run in both.runs] == [[0, 1], [1, 0]], "its own is the first"
    assert not {run.digest for run in one.runs} & {run.digest for run in both.runs}
    trained = []
    execute = both.execute
    both.execute = lambda run, *rest: trained.append((run.variant, run.seed)) or execute(run, *rest)
    rows = list(both.all(progress=False))
    assert trained == [("taught", 0), ("full", 0), ("full", 1), ("taught", 1)]
    assert rows[0]["value"] != rows[1]["value"] or rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.parametrize("decomposition", ["cp", "tucker", "tt"])
def test_a_start_from_a_teacher_is_the_teacher_at_full_rank(decomposition, net, images):
    teacher = train_task(net, "teacher", *images, settings(method="full"), IMAGE, 0, progress=False).model
    rank = 64 if decomposition != "cp" else 8 * 6  # what reproduces any tensor of these shapes
    task = net.add_task("student", nn.Linear(32, 2), tn.AdaptConfig(decomposition, rank=rank, scale=0.5))
    net.set_task("student")
    how = settings(start="teacher", distill={"teacher": "any"})
    begin(net, "student", images[0], how, IMAGE, 0, [teacher])
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), teacher.eval()(x), atol=1e-3)
    for _, module in task.tensors():
        for name, factor in module.factors().items():
            if name != module.zero:
                assert torch.isclose(factor.norm(), torch.tensor(initial_norm(module, name)), rtol=1e-3)


def test_a_start_from_teachers_is_their_mean_at_full_rank(net, images):
    teachers = [
        train_task(net, f"teacher {seed}", *images, settings(method="full"), IMAGE, seed, progress=False).model
        for seed in range(3)
    ]
    mean = copy.deepcopy(teachers[0])
    with torch.no_grad():
        for name, own in mean.state_dict().items():
            if own.is_floating_point():
                own.copy_(sum(teacher.state_dict()[name] for teacher in teachers) / 3)
    net.add_task("student", nn.Linear(32, 2), tn.AdaptConfig("cp", rank=48, scale=0.5))
    net.set_task("student")
    how = settings(start="teachers", distill={"teacher": "any", "seeds": [0, 1, 2]})
    begin(net, "student", images[0], how, IMAGE, 0, teachers)
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        y = net.eval()(x)
        assert torch.allclose(y, mean.eval()(x), atol=1e-3)
        assert not torch.allclose(y, teachers[0].eval()(x), atol=1e-2)


def test_a_start_from_a_teacher_brings_full_fine_tuning(data_root, tmp_path):
    text = (data_root / "recipe.toml").read_text()
    (tmp_path / "r.toml").write_text(text.replace("epochs = 6", 'epochs = 6\nstart = "teacher"'))
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--task", "folders")
    taught, full = json.loads(ran(*args, "--json"))
    assert (taught["variant"], taught["decomposition"], full["variant"], full["method"]) == ("", "cp", "full", "full")
    assert taught["value"] > 0.85 < full["value"]
    recipes = load_recipe(str(tmp_path / "r.toml"))
    assert recipes["full"].train.lr == pytest.approx(0.3 * recipes[""].train.lr)
    assert recorded_recipes(tmp_path / "out") == recipes
    assert (tmp_path / "out/tasks/folders/task.json").is_file()
    assert recipes[""].train.distill.model_dump() == {"teacher": "full", "seeds": (), "weight": 1.0, "temperature": 4.0}
    assert load_recipe(str(data_root / "recipe.toml")).keys() == {""}, "who learns from nobody has no teacher"
    with pytest.raises(ConfigError, match="learns from a teacher"):
        rank_recipes(recipes[""], [1])


def test_a_start_from_teachers_brings_three_of_them(data_root, tmp_path):
    text = (data_root / "recipe.toml").read_text()
    (tmp_path / "r.toml").write_text(text.replace("epochs = 6", 'epochs = 6\nstart = "teachers"\nmixup = 0.2'))
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--task", "folders")
    taught, *full = json.loads(ran(*args, "--json"))
    assert taught["value"] > 0.85
    assert [(row["variant"], row["seed"]) for row in full] == [("full", 0), ("full", 1), ("full", 2)]
    recipes = load_recipe(str(tmp_path / "r.toml"))
    assert recipes[""].train.distill.seeds == (0, 1, 2)
    assert recipes["full"].train.mixup == 0
    (tmp_path / "one.toml").write_text(text)
    sets = ["train.start=teachers", "train.distill.seeds=[0, 5]"]
    few = load_recipe(str(tmp_path / "one.toml"), sets)[""].train.distill
    assert few.model_dump() == {"teacher": "full", "seeds": (0, 5), "weight": 1.0, "temperature": 4.0}
    several = '[variants.one]\ntrain = { start = "teacher" }\n[variants.three]\ntrain = { seeds = [4] }\n'
    (tmp_path / "r.toml").write_text((tmp_path / "r.toml").read_text() + several)
    assert load_recipe(str(tmp_path / "r.toml"))["full"].train.seeds == (0, 4, 1, 2)


def test_a_start_from_a_teacher_is_of_deltas():
    with pytest.raises(ValueError, match='needs the method "adapt"'):
        settings(start="teacher", method="peft-lora", distill={"teacher": "any"})
    for few in ({"distill": {"teacher": "any"}}, {"distill": {"teacher": "any", "seeds": [1]}}):
        with pytest.raises(ValueError, match='start = "teachers" needs several'):
            settings(start="teachers", **few)


def test_a_setting_that_reaches_every_variant_makes_full_fine_tuning_the_teacher_of_the_others(data_root, tmp_path):
    variants = (
        '[variants.full]\ntrain = { method = "full", lr = 5e-3 }\n'
        '[variants.cp]\n[variants.head]\nadapt = { decomposition = "none" }\n'
    )
    (tmp_path / "r.toml").write_text((data_root / "recipe.toml").read_text() + variants)
    plain, taught = (load_recipe(str(tmp_path / "r.toml"), sets) for sets in ((), ("train.start=teacher",)))
    assert taught["full"] == plain["full"]
    for name in ("cp", "head"):
        assert taught[name].train.start == "teacher"
        assert taught[name].train.distill.teacher == "full"


def test_mixed_pairs_are_between_an_image_and_its_partner():
    images = torch.randn(6, 3, 4, 4)
    generator = torch.Generator().manual_seed(3)
    mixed, partners, share = mixed_pairs(images, 0.7, generator)
    assert sorted(partners.tolist()) == list(range(6))
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images[partners], atol=1e-6)
    shares = torch.tensor([mixed_pairs(images, 0.7, generator)[2] for _ in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * 0.7 + 1))) < 0.01  # of Beta(a, a)


def test_mixed_labels_count_by_their_shares(net, images, monkeypatch):
    """With every share at zero, what is learnt is the partner's label for the partner's image."""
    monkeypatch.setattr(
        "tensornet.training.fit.mixed_pairs",
        lambda images, alpha, generator: (images.flip(0), torch.arange(len(images)).flip(0), 0.0),
    )
    done = train_task(net, "a", *images, settings(epochs=6, mixup=1.0), IMAGE, 0, progress=False)
    assert done.fitted.accuracy > 0.85


def test_keys_at_their_defaults_are_no_part_of_the_settings(data_root, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("tensornet.training.run.json.dumps", lambda parts, **_: hashed.append(parts) or repr(parts))

    def digest(*changes):
        grid = Grid(load_recipe(str(data_root / "recipe.toml"), changes), data_root, tmp_path, ["folders"])
        return grid.runs[0].digest

    assert digest() == digest("train.mixup=0.0", "train.seeds=[0]", "input.std=[0.229, 0.224, 0.225]")
    assert digest() != digest("train.mixup=0.5")
    assert set(hashed[0][1]) == {"backbone", "input", "adapt", "train"}
    assert set(hashed[0][1]["train"]) == {"epochs", "batch_size", "lr", "pad", "flip"}


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ('full", seeds = [0, 7] } } #', "not trained with the seeds [7]; its train.seeds are [0]"),
        ("fulll", "Did you mean 'full'"),
        ("taught", "has a teacher itself"),
        ("lora", "or is a peer's"),
        ("short", "not trained with the seeds [0]; its train.seeds are [1]"),
        ("other", "holds out other"),
    ],
)
def test_teachers_that_cannot_teach(teacher, words, data_root, tmp_path):
    text = (data_root / "recipe.toml").read_text() + TAUGHT.replace('teacher = "full"', f'teacher = "{teacher}"')
    text += "[variants.lora]\ntrain = { method = 'peft-lora' }\n[variants.short]\ntrain = { seeds = [1] }\n"
    text += "[variants.other]\ntrain = { holdout = 0.25 }\n"
    (tmp_path / "r.toml").write_text(text)
    assert words in refused("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out")


@pytest.mark.parametrize("where", ["data", "checkpoint"])
def test_errors_of_the_system_are_told_apart(where, net, images, tmp_path, monkeypatch):
    train, test = images

    def broken(self, indices):
        raise OSError("a socket")

    (tmp_path / "file").write_text("")
    task = net.add_task("t", nn.Linear(32, 3))
    net.set_task("t")
    if where == "data":
        monkeypatch.setattr(type(train), "__getitems__", broken)
    with pytest.raises(OSError, match="a socket" if where == "data" else "cannot be kept in") as raised:
        fit.fit(net, task, train, test, settings(), IMAGE, 0, checkpoints=tmp_path / "file" / "state", progress=False)
    assert (type(raised.value) is WriteError) == (where == "checkpoint")


def test_states_of_before_are_read_as_those_of_the_same_callback(tmp_path):
    own, plain = (kind(tmp_path, filename="last", every_n_epochs=1) for kind in (fit._Checkpoint, ModelCheckpoint))
    assert own.state_key == plain.state_key
