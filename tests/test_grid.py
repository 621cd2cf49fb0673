"""What is in a folder of results: which runs count as done, and what several recipes leave there."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from tensornet.backbones import load_backbone
from tensornet.cli import app
from tensornet.data.sources import read_domain
from tensornet.errors import DataError, RecipeError
from tensornet.training.grid import Grid
from tensornet.training.reading import load_recipe
from tensornet.training.recorded import recorded_recipes
from tensornet.training.run import every_run
from tests.commands import HUB, RECIPE, ran, refused
from tests.images import image_folder

SHORT = RECIPE.replace("epochs = 6", "epochs = 1")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for name in ("folders", "parquet"):
        image_folder(folder / name, train=4, test=2)
    (folder / "hub").symlink_to(HUB)
    save_file(load_backbone("hub:hub:tiny", root=folder).state_dict(), folder / "tiny.safetensors")
    return folder


@pytest.fixture
def train(data, tmp_path):
    """The arguments of `tensornet train` for a recipe with some changes of its text."""

    def arguments(*changes, added=""):
        text = SHORT + added
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "r.toml").write_text(text)
        return "train", tmp_path / "r.toml", "--data", data, "--out", tmp_path / "out"

    return arguments


def counted(*args):
    told = json.loads(ran(*args, "--check", "--json"))
    return {key: told[key] for key in ("runs", "done")}


def rows(out):
    return [(row["variant"], row["task"], row["seed"]) for row in json.loads((out / "results.json").read_text())["runs"]]


def test_a_result_of_other_data_is_not_taken_for_one_of_these(train, data, tmp_path):
    args = (*train(), "--task", "folders")
    ran(*args)
    assert counted(*args) == {"runs": 1, "done": 1}
    recipes = load_recipe(str(tmp_path / "r.toml"))
    before = Grid(recipes, data, tmp_path / "out", ["folders"])
    unfinished = before.checkpoints(before.runs[0])
    (data / "folders/train/ant/3.png").unlink()
    said = refused(*args, "--check")
    assert "made with other data: choose another --out" in said
    after = Grid(recipes, data, tmp_path / "out", ["folders"])
    assert after.checkpoints(after.runs[0]) != unfinished, "a run that was killed does not go on with other data"
    (row,) = json.loads(ran("evaluate", tmp_path / "out", "--data", data, "--task", "folders", "--json"))
    assert row["trained_value"] is not None, "a task may be tested on other images"


def test_a_result_of_other_weights_is_not_taken_for_one_of_these(train, data, tmp_path):
    args = (*train(('"hub:hub:tiny"', '"hub:hub:tiny"\nweights = "tiny.safetensors"')), "--task", "folders")
    ran(*args)
    assert counted(*args) == {"runs": 1, "done": 1}
    state = load_backbone("hub:hub:tiny", root=data).state_dict()
    save_file({name: 2 * tensor for name, tensor in state.items()}, data / "tiny.safetensors")
    assert "made with other weights" in refused(*args)


def test_data_of_other_classes_is_no_test_of_what_was_trained(train, data, tmp_path):
    ran(*train())
    for split in ("train", "test"):
        (data / "folders" / split / "ant").rename(data / "folders" / split / "wasp")
    for verb in (("evaluate", tmp_path / "out"), ("prune", "--sweep", tmp_path / "out", "--threshold", 0)):
        told = refused(*verb, "--data", data)
        assert "folders seed 0: it was trained on the classes ant, bee, in this order; the data has bee, wasp" in told


def test_a_run_that_diverges_does_not_keep_the_others_from_theirs(train, tmp_path):
    added = "\n[variants.wild]\ntrain = { lr = 1e35, epochs = 3 }\n[variants.calm]\n"
    assert "wild folders" in refused(*train(added=added), "--task", "folders")
    assert rows(tmp_path / "out") == [("calm", "folders", 0)]


def test_tasks_that_were_not_trained_need_no_data(train, data, tmp_path):
    ran(*train(), "--task", "folders")
    shutil.rmtree(data / "parquet")
    assert len(json.loads(ran("evaluate", tmp_path / "out", "--data", data, "--json"))) == 1
    assert "folders" in ran("prune", "--sweep", tmp_path / "out", "--data", data, "--threshold", 0)


def test_a_taught_run_can_be_swept(train, data, tmp_path):
    ran(*train(), "--task", "folders", "--set", "train.start=teacher")
    assert "folders" in ran("prune", "--sweep", tmp_path / "out", "--data", data, "--threshold", 0)


@pytest.mark.parametrize("seed", [123456789, 2**32 - 1])
def test_any_seed_of_32_bits(seed, train, tmp_path):
    ran(*train(), "--task", "folders", "--set", f"train.seeds=[{seed}]")
    assert [row[2] for row in rows(tmp_path / "out")] == [seed]
    assert "less than 4294967296" in refused(*train(), "--set", f"train.seeds=[{2**32}]")


def test_a_share_to_hold_out_that_leaves_nothing_is_known_before(train):
    assert "holding out 0.99 leaves no image" in refused(*train(), "--set", "train.holdout=0.99", "--check")


def test_rows_of_before_there_were_hashes_count(train, tmp_path):
    args = (*train(), "--task", "folders")
    ran(*args)
    record = tmp_path / "out/runs/folders/seed-0.json"
    row = json.loads(record.read_text())
    assert len(row.pop("data_hash")) == 64
    record.write_text(json.dumps(row))
    assert counted(*args) == {"runs": 1, "done": 1}


def test_the_names_sizes_labels_and_classes_of_images_are_the_data(data):
    from tensornet.data.sources import Split, read_folder

    split = read_folder(data / "folders/train")
    same = Split("elsewhere", split.images, split.labels, split.classes)
    assert split.fingerprint() == same.fingerprint()
    others = [
        Split("", split.images, split.labels[::-1], split.classes),
        Split("", split.images[1:], split.labels[1:], split.classes),
        Split("", split.images, split.labels, ("ant", "wasp")),
        Split("", [path.read_bytes() for path in split.images], split.labels, split.classes),
    ]
    assert len({split.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_a_recipe_with_other_tasks_or_variants_adds_to_a_folder(train, tmp_path):
    out = tmp_path / "out"
    ran(*train(added="[variants.a]\n"), "--task", "folders")
    before = recorded_recipes(out)
    ran(*train(('name = "folders"\ndata', 'name = "more"\ndata'), added="[variants.b]\nadapt = { rank = 1 }\n"))
    assert rows(out) == [("b", "more", 0), ("b", "parquet", 0), ("a", "folders", 0)]
    assert recorded_recipes(out)["a"] == before["a"]
    ran(*train(('name = "folders"\ndata', 'name = "third"\ndata'), added="[variants.a]\n"), "--task", "third")
    assert rows(out)[:2] == [("a", "folders", 0), ("a", "third", 0)]
    assert len(rows(out)) == 4
    evaluate = ("evaluate", out, "--data", tmp_path / "data", "--json")

    def evaluated(*picks):
        return {(row["variant"], row["task"], row["seed"]) for row in json.loads(ran(*evaluate, *picks))}

    assert evaluated() == set(rows(out))
    assert evaluated("--variant", "a") == {("a", "folders", 0), ("a", "third", 0)}
    assert evaluated("--variant", "b", "--task", "parquet", "--seed", 0) == {("b", "parquet", 0)}
    assert "no trained tasks yet of those that were asked for" in refused(*evaluate, "--variant", "a", "--task", "more")
    assert "there is no variant 'c'" in refused(*evaluate, "--variant", "c")
    assert "there is no seed 7" in refused(*evaluate, "--seed", 7)
    sweep = ("prune", "--sweep", out, "--data", tmp_path / "data", "--threshold", 0, "--json")
    points = json.loads(ran(*sweep, "--variant", "a", "--task", "third"))
    assert [(point["variant"], point["task"]) for point in points] == [("a", "third")]
    assert "there is no task 'second'" in refused(*sweep, "--task", "second")


def test_a_seed_more_adds_to_a_folder(train, tmp_path):
    ran(*train(), "--task", "folders")
    ran(*train(), "--task", "parquet", "--set", "train.seeds=[0, 1]")
    ran(*train(), "--task", "folders")
    assert rows(tmp_path / "out") == [("", "folders", 0), ("", "parquet", 0), ("", "parquet", 1)]


def test_other_settings_never_drop_a_result(train, tmp_path):
    out = tmp_path / "out"
    both = "[variants.a]\n[variants.b]\nadapt = { rank = 1 }\n"
    ran(*train(added=both), "--task", "folders", "--variant", "a")
    changed = train(("lr = 2e-2", "lr = 1e-2"), added=both)
    said = refused(*changed, "--task", "parquet")
    assert "results of variant a were made with other settings (train.lr was 0.02 and is 0.01): choose" in said
    assert f"delete {out}/runs/a" in said
    assert not (out / "runs/a/parquet").exists()
    ran(*changed, "--task", "folders", "--variant", "b")
    assert rows(out) == [("a", "folders", 0), ("b", "folders", 0)]
    assert [recorded_recipes(out)[name].train.lr for name in "ab"] == [2e-2, 1e-2]
    recorded = (out / "recipe.json").read_text()
    (out / "recipe.json").write_text(recorded.replace('"cp"', '"mine"'))
    with pytest.raises(RecipeError, match=r"cannot be used here: adapt.decomposition: unknown decomposition 'mine'\. \S"):
        recorded_recipes(out)
    (out / "recipe.json").write_text("{")
    with pytest.raises(RecipeError, match="is not a folder that 'tensornet train' wrote"):
        Grid(load_recipe(str(tmp_path / "r.toml")), tmp_path / "data", out).done()


def test_a_task_whose_data_are_elsewhere_now_stays_what_it_was(train, data, tmp_path):
    out = tmp_path / "out"
    ran(*train())
    image_folder(data / "other", train=6, test=2)
    moved = train(('data = "folders"', 'data = "other"'), ('name = "parquet"', 'name = "third"'))
    ran(*moved, "--task", "third")
    assert rows(out) == [("", "folders", 0), ("", "parquet", 0), ("", "third", 0)]
    tasks = {task.name: task.data for task in recorded_recipes(out)[""].tasks}
    assert tasks == {"folders": "folders", "parquet": "parquet", "third": "parquet"}
    assert "made with other settings" in refused(*moved, "--task", "folders")


def test_no_advice_takes_results_of_others_away(train, tmp_path):
    ran(*train(), "--task", "folders")
    ran(*train(added="[variants.a]\n"), "--task", "folders")
    said = refused(*train(("rank = 2", "rank = 3"), ("pad = 1\n", "")), "--task", "parquet")
    changed = "adapt.rank was 2 and is 3, train.pad was 1 and is 0"
    assert said.endswith(f"results of this recipe were made with other settings ({changed}): choose another --out")


def test_names_that_a_seed_needs_are_no_variants(train):
    assert "a run has a folder of that name" in refused(*train(added="[variants.seed-1]\n"))


def test_long_and_foreign_names(train, data, tmp_path):
    name = "Köln " + 90 * "n"
    (data / name).symlink_to(data / "folders")
    args = train(('name = "folders"\ndata = "folders"', f'name = "{name}"\ndata = "{name}"'))
    ran(*args, "--task", name)
    (row,) = json.loads(ran("evaluate", tmp_path / "out", "--data", data, "--task", name, "--json"))
    assert row["value"] == row["trained_value"]


@pytest.mark.parametrize(
    ("file", "recipe", "settings"),
    [
        ("resnet20-peers", "resnet20-peers", ()),
        ("resnet20-gpu", "resnet20-peers", ()),
        ("resnet20-unit", "resnet20-peers", ("train.precision=32-true",)),
        ("resnet20-ablation", "resnet20-ablation", ()),
        ("resnet20-halves-unit", "resnet20-ablation", ("train.holdout=0.5", "train.precision=32-true")),
        ("resnet20-halves", "resnet20-ablation", ("train.holdout=0.5",)),
        ("resnet20-halves-gpu", "resnet20-ablation", ("train.holdout=0.5",)),
        ("mobilenet-peers", "mobilenet-peers", ()),
        ("mobilenet-unit", "mobilenet-peers", ()),
        ("mobilenet-mean", "mobilenet-peers", ()),
    ],
)
def test_the_rows_of_the_documentation_are_runs_of_the_shipped_recipes(file, recipe, settings):
    """So that a grid can go on from them; a change of what a run is told by would cut it off from all rows at once."""
    recorded = json.loads((Path(__file__).parents[1] / f"docs/runs/{file}.json").read_text())["runs"]
    digests = {(run.variant, run.task.name, run.seed): run.digest for run in every_run(load_recipe(recipe, settings))}
    assert recorded
    assert {digests[row["variant"], row["task"], row["seed"]] == row["digest"] for row in recorded} == {True}


def test_a_network_that_is_lost_is_named(train, data, tmp_path):
    ran(*train())
    shutil.rmtree(tmp_path / "out/tasks/folders")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), "--data", str(data), "--json"])
    assert [row["task"] for row in json.loads(done.stdout)] == ["parquet"]
    assert f"left out: folders seed 0 has a result, but its network {tmp_path / 'out/tasks/folders'} is gone" in done.stderr
    done = CliRunner().invoke(app, [*map(str, train()), "--check"])
    assert "1 done without a network that could be used, such as folders seed 0: delete" in done.stderr


def test_a_run_that_was_stopped_before_its_first_end_is_one(train, data, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Grid, "execute", stopped)
    assert "goes on where it stopped" in refused(*train(), code=130)
    assert "holds no trained tasks yet" in refused("evaluate", tmp_path / "out", "--data", data)
    monkeypatch.undo()
    ran(*train(), "--set", "train.seeds=[1]", "--task", "folders")
    assert [row[2] for row in rows(tmp_path / "out")] == [1], "no result began with another seed"
    assert "began with 1 here" in refused(*train(), "--set", "train.seeds=[0]")


def test_a_folder_that_cannot_be_read(train, data, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match="train cannot be read: Permission denied"):
        read_domain(data / "folders")


@pytest.mark.parametrize("below", ["", "run"])
def test_results_that_can_go_nowhere_are_found_before_the_first_training(train, tmp_path, below):
    (tmp_path / "out").write_text("a file")
    assert "is a file; name a folder" in refused(*train(), "--out", tmp_path / "out" / below, "--check")


def test_a_recipe_that_is_no_table_is_told(train, tmp_path):
    ran(*train(), "--task", "folders", "--set", "train.epochs=1")
    (tmp_path / "out" / "recipe.json").write_text("[]")
    with pytest.raises(RecipeError, match="holds no table"):
        recorded_recipes(tmp_path / "out")


def test_a_pattern_with_a_backslash_is_taken_as_it_is(train):
    told = counted(*train(), "--set", r"adapt.targets=\d")
    assert told["done"] == 0
