"""The command line as a user runs it."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensornet as tn
from tensornet.errors import RecipeError
from tensornet.training.grid import Grid
from tensornet.training.reading import load_recipe, shipped
from tests.commands import HUB, RECIPE, ran, refused, tensornet
from tests.images import image_folder, lists


def test_train_writes_tasks_and_results(trained_run, data_root):
    results = json.loads((trained_run / "results.json").read_text())["runs"]
    assert [row["task"] for row in results] == ["folders", "parquet"]
    for row in results:
        assert row["value"] > 0.85, "the sets are easy; a run that does not learn is broken"
        assert row["trainable_parameters"] == sum(row["parameters"][k] for k in ("deltas", "norms", "head"))
        assert row["ratio"] == row["trainable_parameters"] / row["backbone_parameters"]
        file = tn.read_task(trained_run / "tasks" / row["task"])
        assert file.parameter_counts() == row["parameters"]
        assert file.record.backbone.name == "hub:hub:tiny"
        assert file.record.classes == row["classes"]
        assert len(row["classes"]) == {"folders": 2, "parquet": 3}[row["task"]]
    written = (trained_run / "results.md").read_text()
    assert written.startswith("Accuracy on test, percent.")
    assert "| folders | parquet | mean |" in written
    assert not list((trained_run / "checkpoints").rglob("last.ckpt"))


def test_train_again_keeps_what_is_done(trained_run, data_root):
    before = {p: p.stat().st_mtime_ns for p in (trained_run / "runs").rglob("*.json")}
    out = ran("train", data_root / "recipe.toml", "--data", data_root, "--out", trained_run, "--json")
    assert len(json.loads(out)) == 2
    assert {p: p.stat().st_mtime_ns for p in (trained_run / "runs").rglob("*.json")} == before
    said = refused("train", data_root / "recipe.toml", "--data", data_root, "--out", trained_run, "--set", "train.lr=1.0")
    assert "made with other settings" in said


def test_same_seed_same_bytes(trained_run, data_root, tmp_path):
    tensornet("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, "--task", "folders")
    for name in ("task.json", "task.safetensors"):
        path = Path("tasks/folders") / name
        assert (tmp_path / path).read_bytes() == (trained_run / path).read_bytes()


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(trained_run, data_root, tmp_path):
    command = [sys.executable, "-m", "tensornet", "train", str(data_root / "recipe.toml"), "--data", str(data_root)]
    command += ["--out", str(tmp_path), "--task", "folders"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "checkpoints"
    deadline = time.time() + 60
    while not list(checkpoints.rglob("last.ckpt")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    if process.returncode == 0:
        pytest.skip("the run was faster than the kill")
    assert not (tmp_path / "tasks").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = Path("tasks/folders/task.safetensors")
    assert (tmp_path / path).read_bytes() == (trained_run / path).read_bytes()


def test_ctrl_c_says_so_and_leaves_nothing_half_written(data_root, tmp_path):
    command = [sys.executable, "-m", "tensornet", "train", str(data_root / "recipe.toml"), "--data", str(data_root)]
    command += ["--out", str(tmp_path), "--set", "train.epochs=2000", "--task", "folders"]
    heeded = functools.partial(
        signal.signal, signal.SIGINT, signal.default_int_handler
    )  # a shell's background job would not
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=heeded)
    deadline = time.time() + 60
    while not list((tmp_path / "checkpoints").rglob("last.ckpt")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "tasks").exists()
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("setting", ["train.precision=bf16-mixed", "train.optimizer=sgd", "train.schedule=step"])
def test_other_ways_to_train_learn_too(setting, data_root, tmp_path):
    args = ("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, "--task", "folders", "--json")
    (row,) = json.loads(ran(*args, "--set", setting, "--set", "train.epochs=8"))
    assert row["value"] > 0.8


def test_evaluate_agrees_with_training(trained_run, data_root):
    rows = json.loads(ran("evaluate", trained_run, "--data", data_root, "--json"))
    assert {row["task"]: row["value"] for row in rows} == {row["task"]: row["trained_value"] for row in rows}
    assert "folders" in ran("evaluate", trained_run, "--data", data_root, "--task", "folders")


@pytest.mark.parametrize("method", ["full", "peft-lora", "peft-lokr", "lycoris-locon"])
def test_evaluate_tests_what_is_no_task_as_it_was_written(method, data_root, tmp_path):
    out = tmp_path / "out"
    args = ("train", data_root / "recipe.toml", "--data", data_root, "--out", out, "--task", "folders")
    (trained,) = json.loads(ran(*args, "--set", f"train.method={method}", "--set", "train.epochs=3", "--json"))
    (row,) = json.loads(ran("evaluate", out, "--data", data_root, "--json"))
    assert row["value"] == row["trained_value"] == trained["value"]
    file = out / "models/folders.safetensors"
    state = load_file(file)
    del state[next(iter(state))]
    save_file(state, file)
    assert "missing" in refused("evaluate", out, "--data", data_root)
    file.unlink()
    assert "no trained tasks" in refused("evaluate", out, "--data", data_root)


def test_inspect_and_merge(trained_run, data_root, tmp_path):
    task = trained_run / "tasks/folders"
    told = json.loads(ran("inspect", task, "--json"))
    assert [t["layer"] for t in told["tensors"]] == ["0", "3"]
    assert told["parameters"] == tn.read_task(task).parameter_counts()
    shown = ran("inspect", task)
    assert "hub:hub:tiny" in shown
    assert "2 classes: ant, bee" in shown
    assert told["classes"] == ["ant", "bee"]
    ran("merge", task, "--data", data_root, "--out", tmp_path / "merged.safetensors")
    backbone = tn.load_backbone("hub:hub:tiny", root=data_root)
    net = tn.adapt(backbone)
    net.load_task(task)
    plain = tn.load_backbone("hub:hub:tiny", root=data_root, options={"classes": 2})
    plain.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    x = torch.randn(3, 3, 12, 12)
    net.eval(), plain.eval()
    with net.task("folders"):
        assert torch.equal(plain(x), net(x))


def test_count_without_building_a_factor(data_root, tmp_path):
    told = json.loads(
        tensornet("inspect", "--count", "hub:hub:tiny", "--data", data_root, "--rank", 4, "--tasks", 5, "--json")
    )
    deltas = 4 * (6 + 3 + 9) + 4 * (8 + 6 + 9)
    base = 6 * 27 + 8 * 54 + 2 * 14
    assert (told["base"], told["deltas_per_task"], told["norms_per_task"]) == (base, deltas, 28)
    assert told["ratio"] == (base + 5 * (deltas + 28)) / base
    huge = "from torch import nn\ndef net():\n    print('!')\n    return nn.Sequential(nn.Linear(10**6, 10**6), wide())\n"
    huge += "def wide():\n    return nn.Linear(10**6, 2)\n"
    (tmp_path / "huge.py").write_text(huge)
    out = tensornet("inspect", "--count", "python:huge:net", "--decomposition", "tt", "--rank", 50, cwd=tmp_path)
    assert "1,000,000,000,000 parameters" in " ".join(out.split())
    assert "!" not in out, "what a constructor prints would be taken for a part of the JSON"


OWN = """
import tensornet as tn
from tensornet.decompositions import CP

print("!")


@tn.register("own")
class Own(CP):
    pass
"""


def test_a_decomposition_of_ones_own_from_train_to_merge(data_root, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "r.toml").write_text(RECIPE.replace('"cp"', '"own"').replace("epochs = 6", "epochs = 1"))
    train = ("train", "r.toml", "--data", data_root, "--out", "out", "--task", "folders", "--json")
    named = "One of your own is known once its module is imported: tensornet --import MODULE."
    said = tensornet(*train, cwd=tmp_path, code=1)
    assert f"line 7: adapt.decomposition: unknown decomposition 'own'. Did you mean 'low_rank'? {named}" in said
    (trained,) = json.loads(tensornet("--import", "mine", *train, cwd=tmp_path))
    evaluate = ("evaluate", "out", "--data", data_root, "--json")
    assert named in tensornet(*evaluate, cwd=tmp_path, code=1)
    (row,) = json.loads(tensornet("--import", "mine", *evaluate, cwd=tmp_path))
    assert row["value"] == trained["value"]
    merge = ("merge", "out/tasks/folders", "--data", data_root, "--out", "m.safetensors")
    assert named in tensornet(*merge, cwd=tmp_path, code=1)
    tensornet("--import", "mine", *merge, cwd=tmp_path)
    assert '"own"' in tensornet("--import", "mine", "inspect", "out/tasks/folders", "--json", cwd=tmp_path)


def test_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    assert "as an import statement does: mine; got mine.py" in refused("--import", "mine.py", "inspect", tmp_path)
    assert "the module absent_module cannot be imported" in refused("--import", "absent_module", "inspect", tmp_path)
    assert "broken_module cannot be imported: ZeroDivisionError" in refused("--import", "broken_module", "inspect", tmp_path)
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    assert "a_script cannot be imported: SystemExit: 0" in refused("--import", "a_script", "inspect", tmp_path)
    assert str(tmp_path) not in sys.path


def test_python_backbone_and_full_fine_tuning(data_root, tmp_path):
    (tmp_path / "beside.py").write_text((HUB / "hubconf.py").read_text())
    (tmp_path / "nets.py").write_text("def tiny():\n    import beside\n\n    return beside.tiny()\n")
    (tmp_path / "r.toml").write_text(
        RECIPE.replace("hub:hub:tiny", "python:nets:tiny") + "[variants.full]\ntrain = { method = 'full', lr = 5e-3 }\n"
    )
    args = ("train", "r.toml", "--data", data_root, "--out", "out", "--task", "folders", "--json")
    (row,) = json.loads(tensornet(*args, cwd=tmp_path))
    assert row["value"] > 0.85
    assert (
        row["parameters"]["total"]
        == sum(t.numel() for t in load_file(tmp_path / "out/full/models/folders.safetensors").values()) - 2 * 7 * 2 - 2
    )


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("AutoModelForImageClassification", "DeiTForImageClassification"),
        ("ResNetForImageClassification", "MobileNetV1ForImageClassification"),
    ],
)
def test_a_backbone_of_transformers(kind, other, data_root, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    if kind.startswith("Auto"):
        vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        network = transformers.ViTForImageClassification(transformers.ViTConfig(**vit, image_size=12, patch_size=4))
    else:
        network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    network.save_pretrained(tmp_path / "checkpoint")
    alone = RECIPE.replace("hub:hub:tiny", f"transformers:{tmp_path / 'checkpoint'}")
    (tmp_path / "r.toml").write_text(alone)
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--task", "folders")
    assert "has no head; write transformers:AutoModelForImageClassification:" in refused(*args)
    named = alone.replace("transformers:", f"transformers:{kind}:")
    for wrong, words in (
        (named.replace(kind, "ViTForImageClasification"), "Did you mean 'ViTForImageClassification'"),
        (named.replace(kind, other), ": it is of another class; AutoModelForImageClassification finds"),
        (named.replace("checkpoint", "nowhere"), f"there is no folder {tmp_path / 'nowhere'}"),
    ):
        (tmp_path / "r.toml").write_text(wrong)
        assert words in refused(*args)
    student = "train = { start = 'gradients', distill = { teacher = 'full' } }"
    (tmp_path / "r.toml").write_text(f"{named}[variants.cp]\n{student}\n[variants.full]\ntrain = {{ method = 'full' }}\n")
    rows = json.loads(ran(*args, "--json"))
    assert [row["value"] > 0.75 for row in rows] == [True, True]
    found = json.loads(ran("evaluate", tmp_path / "out", "--data", data_root, "--json"))
    assert [row["value"] for row in found] == [row["value"] for row in rows]
    untrained = tn.load_backbone(f"transformers:{kind}:checkpoint", root=tmp_path, pretrained=False)
    assert type(untrained) is type(network)


def test_names_that_could_be_confused(data_root, tmp_path):
    text = RECIPE.replace('name = "folders"', 'name = "b-one"').replace('name = "parquet"', 'name = "one"')
    text = text.replace('data = "parquet"', 'data = "folders"') + "[variants.a]\n[variants.a-b]\n"
    (tmp_path / "r.toml").write_text(text)
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--set", "train.epochs=1")
    assert len(json.loads(ran(*args, "--json"))) == 4


def test_a_damaged_checkpoint_is_as_good_as_none(data_root, tmp_path, trained_run):
    grid = Grid(load_recipe(str(data_root / "recipe.toml")), data_root, tmp_path, ["folders"])
    folder = grid.checkpoints(grid.runs[0])
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"PK damaged")
    ran("train", data_root / "recipe.toml", "--data", data_root, "--out", tmp_path, "--task", "folders")
    path = "tasks/folders/task.safetensors"
    assert (tmp_path / path).read_bytes() == (trained_run / path).read_bytes()


def test_variants_seeds_and_selection(data_root, tmp_path):
    text = (
        RECIPE
        + "[variants.head]\nadapt = { decomposition = 'none', norms = 'shared' }\n"
        + "[variants.tt]\nadapt = { decomposition = 'tt' }\n"
    )
    (tmp_path / "r.toml").write_text(text)
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--set", "train.epochs=1")
    args += ("--set", "train.seeds=[0, 1]", "--task", "folders")
    rows = json.loads(ran(*args, "--json"))
    assert [(r["variant"], r["seed"]) for r in rows] == [("head", 0), ("head", 1), ("tt", 0), ("tt", 1)]
    assert (tmp_path / "out/tt/seed-1/tasks/folders/task.json").is_file()
    known = json.loads(ran(*args, "--variant", "tt", "--check", "--json"))
    assert (known["runs"], known["done"]) == (2, 2)
    assert {(r["decomposition"], r["rank"]) for r in rows} == {("none", None), ("tt", 2)}
    assert "there is no variant 'ttt'. Did you mean 'tt'?" in refused(*args, "--variant", "ttt")
    assert "there is no seed 2; train.seeds has [0, 1]" in refused(*args, "--seed", "2")
    assert len(json.loads(ran(*args, "--seed", "1", "--json"))) == 4, "every result of the folder is shown"
    ran(*args, "--variant", "head")
    assert len(json.loads((tmp_path / "out/results.json").read_text())["runs"]) == 4, "results of other variants stay"
    assert "began with 0 here and begins with 1 now" in refused(*args, "--set", "train.seeds=[1]")
    assert "began with 0 here" in refused(*args, "--set", "train.seeds=[1]", "--check")


def test_every_mistake_of_a_recipe_at_once_with_its_line(data_root, tmp_path):
    text = (
        RECIPE.replace("rank = 2", "rank = -2")
        .replace("epochs = 6", "epochs = 0\nlearning_rate = 1")
        .replace("size = 12", "")
    )
    (tmp_path / "r.toml").write_text(text.replace('name = "parquet"', 'name = "../parquet"'))
    said = refused("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out")
    for words in (
        "line 8: adapt.rank: rank must be a positive int",
        "line 10",
        "greater than 0",
        "unknown key",
        "There is: method, epochs",
        "input.size: Field required",
    ):
        assert words in said, said
    assert "cannot name a task" in said
    assert "tasks: " not in said, "there are tasks, with mistakes"
    assert not (tmp_path / "out").exists()


def test_mistakes_of_the_config_of_variants_and_of_settings_are_told_where_they_are(tmp_path):
    changed = """
[variants.a]
adapt = { decomposition = "pc", rank = 0, targts = "x" }
train = { lr = -1.0 }
[variants.b.adapt.layers]
"layer1.*" = { rank = 2, budget = 0.1 }
'conv' = "tuker"
[variants.c.adapt]
rank = 3
budget = 0.5
[variants.c.adapt.layers."conv[12]\\\\.x"]
rank = -3
"""
    (tmp_path / "r.toml").write_text(RECIPE + changed)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "r.toml"), ["train.epochs=-3"])
    first, both = RECIPE.count("\n") + 1, "give a rank or a budget, not both"
    own = "One of your own is known once its module is imported: tensornet --import MODULE."
    ranks = "rank must be a positive int or a tuple of them"
    assert caught.value.problems == (
        f"line {first + 2}: variants.a.adapt.decomposition: unknown decomposition 'pc'. Did you mean 'cp'? {own}",
        f"line {first + 2}: variants.a.adapt.rank: {ranks}; got 0",
        f"line {first + 2}: variants.a.adapt.targts: unknown setting 'targts'. Did you mean 'targets' or 'layers'?",
        "--set train.epochs: Input should be greater than 0; got -3",
        f"line {first + 3}: variants.a.train.lr: Input should be greater than 0; got -1.0",
        f'line {first + 5}: variants.b.adapt.layers."layer1.*": {both}; got rank=2 and budget=0.1',
        f"line {first + 6}: variants.b.adapt.layers.conv: unknown decomposition 'tuker'. Did you mean 'tucker'? {own}",
        f'line {first + 10}: variants.c.adapt.layers."conv[12]\\\\.x": {ranks}; got -3',
        f"line {first + 7}: variants.c.adapt: {both}; got rank=3 and budget=0.5",
    )


@pytest.mark.parametrize(
    ("added", "settings", "said"),
    [
        ("", ['adapt.folding=["depth"]'], "--set adapt.folding: folding must be a name; got ['depth']"),
        ("", ['adapt.layers.a.decomposition=["cp"]'], "--set adapt.layers.a: decomposition must be a name; got ['cp']"),
        ("[variants.v]\nadapt.layers.a.rank = -3\n", [], "line {1}: variants.v.adapt.layers.a: rank must be a positive int"),
        ("", ["train.lr.x=3"], "--set train.lr: Input should be a valid number"),
        ("", ["foo.bar=3"], "--set foo: unknown key"),
        ('[variants.v]\nadapt.layers = "no.toml"\n', [], "line {1}: variants.v.adapt.layers: "),
        ("", ["adapt.layers=no.toml"], "--set adapt.layers: no.toml is no plan"),
        ("[variants.v.variants.x]\nadapt.rank = 1\n", [], "line {0}: variants.v: a variant has no variants"),
        ('[variants.""]\nadapt.rank = 1\n', [], "line {0}: variants.\"\": '' cannot name a task"),
        ('[[tasks]]\nname = "folders"\ndata = "x"\n', [], "line 15: tasks: two tasks are called 'folders'"),
    ],
)
def test_where_a_mistake_is(added, settings, said, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE + added)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "r.toml"), settings)
    first = RECIPE.count("\n") + 1
    wanted = said.format(first, first + 1)
    assert [problem for problem in caught.value.problems if problem.startswith(wanted)], caught.value.problems


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("hub:hub:tiny", "hub:hub:small"), "small"),
        (("hub:hub:tiny", "hub:nowhere:tiny"), "there is no"),
        (("hub:hub:tiny", "nothing"), "KIND:NAME"),
        (("hub:hub:tiny", "python:absent:f"), "cannot be imported"),
        (("hub:hub:tiny", "timm:resnet18"), "timm"),
        (('data = "folders"', 'data = "absent"'), "absent does not exist"),
        (("[input]", "[inputs]"), "inputs"),
        (("[input]", "[input"), "line"),
        (('decomposition = "cp"', 'decomposition = "pc"'), "unknown decomposition 'pc'"),
        (('decomposition = "cp"', 'targets = ["conv7"]'), "matches no layer"),
        (("size = 12", "size = 12\n[[tasks]]"), "line"),
        (("pad = 1", "pad = 1\nseeds = []"), "at least 1 item"),
        (("pad = 1", "pad = 1\nseeds = [1, 1]"), "every seed once"),
        (("pad = 1", "pad = 1\nmilestones = [3, 5]"), "ascending shares of all steps"),
        (("pad = 1", "pad = 1\nrates = { zeros = 2 }"), "Did you mean 'zero'"),
        (("[backbone]", "variants = 3\n[backbone]"), "a table of variants was expected"),
        (("[backbone]", "[variants.tasks]\n[backbone]"), "a run has a folder of that name"),
        (('source = "hub:hub:tiny"', 'source = "hub:hub:images_only"'), "it fails on an image of 12×12 pixels"),
        (('source = "hub:hub:tiny"', 'source = "hub:hub:dictionary"'), "should give the shape (1, 2); got dict"),
        (('data = "parquet"', 'data = "broken"'), "1 of 6 images cannot be read"),
    ],
)
def test_bad_recipes(data_root, tmp_path, change, words):
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    said = refused("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out")
    assert words in said
    assert not (tmp_path / "out").exists()


def test_other_bad_input(data_root, tmp_path, trained_run):
    assert "cannot be read" in refused("train", "absent.toml", "--out", tmp_path / "o")
    assert "is no task folder" in refused("inspect", tmp_path)
    assert "not a folder that 'tensornet train' wrote" in refused("evaluate", tmp_path)
    assert "--count" in refused("inspect", code=2)
    task = trained_run / "tasks/folders"
    said = refused("merge", task, "--data", data_root, "--out", tmp_path / "absent/m.safetensors")
    assert "cannot write" in said
    recipe = data_root / "recipe.toml"
    (tmp_path / "file").write_text("")
    assert "file is a file; name a folder" in refused("train", recipe, "--data", data_root, "--out", tmp_path / "file")
    assert "cannot make the folder" in refused("demo", "--out", tmp_path / "file")
    assert "key=value" in refused("train", recipe, "--out", tmp_path / "o", "--set", "epochs")
    assert "no task 'nothing'" in refused("train", recipe, "--data", data_root, "--out", tmp_path / "o", "--task", "nothing")


def test_a_task_folder_is_tested_on_the_data_of_a_run(trained_run, data_root, tmp_path):
    ran("prune", trained_run / "tasks/folders", "--keep", 1, "--out", tmp_path / "small")
    command = ["evaluate", trained_run, "--data", data_root, "--json"]
    own = {row["task"]: row["value"] for row in json.loads(ran(*command))}
    small, same = json.loads(ran(*command, "--folder", tmp_path / "small", "--folder", trained_run / "tasks/parquet"))
    assert (small["task"], small["variant"]) == ("folders", str(tmp_path / "small"))
    assert 0 <= small["value"] <= 1
    assert (same["task"], same["value"]) == ("parquet", own["parquet"])
    said = refused("evaluate", trained_run, "--data", data_root, "--folder", tmp_path / "small", "--task", "parquet")
    assert "in this order; the data has" in said
    several = ["--folder", tmp_path / "small", "--task", "folders", "--task", "parquet"]
    assert "leave out --seed" in refused("evaluate", trained_run, "--folder", tmp_path / "small", "--seed", 0)
    assert "on the data of one task" in refused("evaluate", trained_run, "--data", data_root, *several)


def test_norms(trained_run, tmp_path):
    tasks = [trained_run / "tasks" / name for name in ("folders", "parquet")]
    told = json.loads(ran("norms", *tasks, "--json", "--out", tmp_path / "n.png", "--csv", tmp_path / "n.csv"))
    file = tn.read_task(tasks[0])
    wanted = {plan.fold.name: module.to_tensor().norm().item() for plan, module in file.tensors}
    assert told["folders"] == pytest.approx(wanted, rel=1e-5)
    assert (tmp_path / "n.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "n.csv").read_text().startswith("layer,folders,parquet")
    assert "there is no folder" in refused("norms", *tasks, "--out", tmp_path / "absent/n.png", code=2)
    assert ".svg or .pdf" in refused("norms", *tasks, "--out", tmp_path / "n.gif", code=2)


def test_shipped_recipes_are_valid():
    assert shipped() == [
        "domainnet",
        "imagenet-to-sketch",
        "mobilenet-domains",
        "mobilenet-peers",
        "resnet20-ablation",
        "resnet20-domains",
        "resnet20-peers",
    ]
    for name in shipped():
        assert load_recipe(name)
    with pytest.raises(RecipeError, match="The package has: domainnet"):
        load_recipe("resnet21")


@pytest.mark.parametrize("name", ["imagenet-to-sketch", "domainnet"])
def test_the_layouts_of_the_papers(name, tmp_path):
    if name == "domainnet":
        lists(tmp_path, ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"))
    else:
        for folder in ("flowers", "wikiart", "sketches", "stanford_cars_cropped", "cubs_cropped"):
            image_folder(tmp_path / folder, train=4, test=2)
    (tmp_path / "hub").symlink_to(HUB)
    small = [
        "backbone.source='hub:hub:tiny'",
        "input.size=10",
        "input.resize=12",
        "train.epochs=1",
        "train.workers=0",
        "adapt.rank=1",
    ]
    changes = [word for change in small for word in ("--set", change)]
    rows = json.loads(ran("train", name, "--data", tmp_path, "--out", tmp_path / "out", "--json", *changes))
    tasks = 6 if name == "domainnet" else 5
    assert len({row["task"] for row in rows}) == tasks
    assert len(rows) == tasks * (1 if name == "domainnet" else 3)


def test_the_package_carries_its_recipes():
    assert {f.name for f in resources.files("tensornet.recipes").iterdir()} >= {f"{name}.toml" for name in shipped()}


def test_version_and_help():
    assert tn.__version__ in ran("--version")
    for verb in ("demo", "train", "evaluate", "inspect", "merge", "extract", "export", "bench", "norms"):
        assert verb in ran("--help")


@pytest.mark.slow
def test_demo(tmp_path):
    assert "unknown domain 'cluter'. Did you mean 'clutter'?" in refused("demo", "--domain", "cluter")
    domains = ("--domain", "clutter", "--domain", "handwritten")
    rows = json.loads(tensornet("demo", "--out", tmp_path / "demo", *domains, "--json"))
    score = {(row["variant"], row["task"]): row["value"] for row in rows}
    assert len(rows) == 12
    for task in ("clutter", "handwritten"):
        assert score["FTN, CP rank 16", task] > score["norm + head", task] > score["head", task]
    for name in ("demo.png", "norms.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 20_000
    assert {task.name for task in (tmp_path / "demo/tasks").iterdir()} == {"clutter", "handwritten"}


@pytest.mark.slow
def test_the_real_run(data, tmp_path):
    args = ("train", "resnet20-domains", "--data", data, "--out", tmp_path, "--set", "train.epochs=1", "--task", "cartoon")
    rows = json.loads(tensornet(*args, "--json"))
    found = {row["variant"]: row for row in rows}
    assert found["cp16"]["parameters"] == {"deltas": 23_776, "norms": 1_376, "head": 455, "total": 25_607}
    assert found["cp16"]["value"] > found["head"]["value"] > 1 / 7


def test_every_mistake_of_a_recipe_with_its_own_line(data_root, tmp_path):
    text = RECIPE.replace('decomposition = "cp"', 'decomposition = "pc"').replace("epochs = 6", "epochs = 0")
    (tmp_path / "r.toml").write_text("\ufeff" + text, "utf-8")  # as some editors begin a file
    said = refused("train", tmp_path / "r.toml", "--out", tmp_path / "out")
    lines = text.splitlines()
    for key, words in (
        ("decomposition", "adapt.decomposition: unknown decomposition 'pc'"),
        ("epochs", "train.epochs: Input should be"),
    ):
        number = next(i for i, line in enumerate(lines, 1) if line.startswith(key))
        assert f"line {number}: {words}" in said
    (tmp_path / "r.toml").write_text(RECIPE)
    args = ("train", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--variant", "taught")
    assert "there is no variant 'taught'. There is none." in refused(*args)
    args = ("ranks", tmp_path / "r.toml", "--data", data_root, "--out", tmp_path / "out", "--variant", "taught")
    assert "has no variants; leave --variant out" in refused(*args)


def test_consoles_that_do_not_know_every_letter_and_a_full_disk(trained_run):
    task = trained_run / "tasks/folders"
    command = [sys.executable, "-m", "tensornet", "norms", str(task)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"folders" in done.stdout
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
