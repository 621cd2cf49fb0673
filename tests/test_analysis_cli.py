"""The verbs of the analysis package on a run that was trained with the command line."""

import json
import shutil
from importlib import resources

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import analysis
import tensornet as tn
from analysis.commands.ranks import _score
from analysis.figures import rank_lines, save_figure
from analysis.ranks import rank_recipes, rank_table
from tensornet.cli import app
from tensornet.errors import ConfigError, TaskFileError
from tensornet.training.reading import load_recipe
from tensornet.training.statistics import reestimate
from tests.commands import ran, refused


@pytest.fixture
def run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture(scope="module")
def tuned(data_root):
    out = data_root / "full"
    sets = ["train.method=full", "train.lr=5e-3", "train.epochs=4"]
    ran("train", data_root / "recipe.toml", "--data", data_root, "--out", out, *(f"--set={s}" for s in sets))
    return out / "models" / "folders.safetensors"


def test_norms_of_every_kind(run, tmp_path):
    tasks = sorted((run / "tasks").iterdir())
    for kind in ("delta", "relative", "per_parameter", "factor", "component"):
        out, csv = tmp_path / f"{kind}.png", tmp_path / f"{kind}.csv"
        found = json.loads(ran("norms", *tasks, "--kind", kind, "--json", "--out", out, "--csv", csv))
        table = analysis.norms(tasks, kind=kind)
        assert out.stat().st_size > 3000
        assert len(found) == table.shape[1]
        assert next(iter(found.values())) == pytest.approx(table.iloc[:, 0].dropna().to_dict())
    assert pd.read_csv(tmp_path / "delta.csv", index_col=0).shape == (2, 2)
    assert "--out" in ran("norms", "--help")
    assert "there is no folder" in refused("norms", *tasks, "--out", tmp_path / "no" / "x.png", code=2)
    assert "there is no folder" in refused("norms", *tasks, "--csv", tmp_path / "no" / "x.csv", code=2)


def test_prune_and_sweep(run, tmp_path, data_root):
    task = run / "tasks" / "folders"
    norms = analysis.norms(task)["folders"]
    limit = float(norms.max())
    found = json.loads(ran("prune", task, "--threshold", limit, "--out", tmp_path / "small", "--json"))
    assert found["removed"] == list(norms.index[norms < limit])
    assert {repr(layer["rank"]) for layer in found["layers"]} == {"2", "None"}, "whole numbers beside layers without any"
    assert tn.read_task(tmp_path / "small").parameter_counts()["deltas"] == found["parameters"]
    assert "removes every delta" in refused("prune", task, "--threshold", "1e9", "--out", tmp_path / "x")
    assert "give a task folder to prune, or --sweep" in refused("prune")
    assert "--out says where" in refused("prune", task, "--keep", "1")
    ran("prune", task, "--keep", "1", "--norms", "0.01", "--data", data_root, "--out", tmp_path / "kept")
    out = tmp_path / "sweep.png"
    command = ["prune", "--sweep", run, "--data", data_root, "--reestimate", "--out", out, "--csv", tmp_path / "s.csv"]
    points = json.loads(ran(*command, "--json"))
    assert out.stat().st_size > 10_000
    for task in ("folders", "parquet"):
        own = [p for p in points if p["task"] == task]
        results = json.loads((run / "results.json").read_text())["runs"]
        trained = next(row["value"] for row in results if row["task"] == task)
        assert own[0]["removed"] == 0
        assert own[0]["accuracy"] == pytest.approx(trained, abs=1e-6), "nothing removed, nothing changed"
        assert own[-1]["removed"] == own[-1]["layers"]
        assert own[-1]["parameters"] == 0
        assert all(p["reestimated"] is not None for p in own)
        assert own[0]["reestimated"] >= trained - 0.15
    written = (run / "sweep.json").stat().st_mtime_ns
    assert json.loads(ran(*command, "--json")) == points
    assert (run / "sweep.json").stat().st_mtime_ns == written, "what is known is not tested again"
    other = shutil.copytree(data_root, tmp_path / "other", symlinks=True)
    (other / "folders/test/ant/0.png").unlink()
    again = json.loads(ran("prune", "--sweep", run, "--data", other, "--json", "--threshold", 0))
    found = {point["task"]: point["accuracy"] for point in again}
    assert (run / "sweep.json").stat().st_mtime_ns != written, "points of other data are no points of these"
    tested = json.loads(ran("evaluate", run, "--data", other, "--json"))
    assert found == pytest.approx({row["task"]: row["value"] for row in tested})
    (run / "sweep.json").write_text("{}")
    assert "is not what 'tensornet prune --sweep' wrote" in refused(*command)


def test_statistics_are_those_of_the_inputs():
    from tests.toys import ResNet, trained

    net = tn.adapt(ResNet(), tn.AdaptConfig("cp", rank=2))
    trained(net.add_task("a", torch.nn.Linear(8, 3)))
    before = {n: t.clone() for n, t in net.backbone.state_dict().items()}
    batches = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    reestimate(net, "a", iter(batches))
    assert all(torch.equal(t, before[n]) for n, t in net.backbone.state_dict().items())
    net.set_task("a")
    seen = [net.backbone.conv1(x) for x in batches]
    means = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(net["a"].own_norms()["bn1"].running_mean, means.detach(), rtol=1e-4, atol=1e-5)
    assert net["a"].own_norms()["bn1"].momentum == 0.1
    with pytest.raises(tn.TensornetError, match="no data at all"):
        reestimate(net, "a", [])
    found = {n: t.clone() for n, t in net["a"].state_dict().items()}
    reestimate(net, "a", [(x, torch.zeros(16)) for x in batches])  # labels are left aside
    assert all(torch.equal(t, found[n]) for n, t in net["a"].state_dict().items())
    with pytest.raises(RuntimeError, match="size"):
        reestimate(net, "a", [batches[0], torch.randn(16, 5, 8, 8)])
    assert all(torch.equal(t, found[n]) for n, t in net["a"].state_dict().items())


def test_ranks(data_root, tmp_path):
    recipe, out = data_root / "recipe.toml", tmp_path / "ranks"
    sets = ["--set", "train.epochs=1", "--task", "folders", "--rank", "2", "--rank", "0"]
    command = ["ranks", recipe, "--data", data_root, "--out", out, "--seeds", "2", *sets]
    rows = json.loads(ran(*command, "--json", "--figure", tmp_path / "r.svg", "--csv", tmp_path / "r.csv"))
    assert {(row["variant"], row["seed"]) for row in rows} == {(f"rank-{r}", s) for r in (0, 2) for s in (0, 1)}
    assert {(row["variant"], row["rank"]) for row in rows} == {("rank-0", None), ("rank-2", 2)}
    assert (tmp_path / "r.svg").stat().st_size > 3000
    table = rank_table(rows)
    assert list(table.index) == [0, 2]
    values = [row["value"] for row in rows if row["variant"] == "rank-2"]
    assert table.loc[2, ("folders", "mean")] == pytest.approx(sum(values) / 2)
    done = ran(*command)
    assert "±" in done
    assert not tn.read_task(out / "rank-0/tasks/folders").tensors, "rank 0 is norms and head alone"
    failed = refused("ranks", recipe, "--data", data_root, "--out", tmp_path / "f", *sets, "--set", "train.lr=1e30")
    assert "2 of 2 runs cannot be run" in failed
    assert "diverged" in failed
    assert "ints ≥ 0" in refused(*command[:6], "--rank", "-1")


def test_rank_recipes_refuse_what_has_no_rank():
    recipes = load_recipe("resnet20-domains")
    with pytest.raises(ConfigError, match="no deltas whose rank could vary"):
        rank_recipes(recipes["full"], [1])
    with pytest.raises(ConfigError, match="no deltas whose rank could vary"):
        rank_recipes(recipes["head"], [1])
    made = rank_recipes(recipes["cp16"], [4, 0], seeds=3)
    assert list(made) == ["rank-0", "rank-4"]
    assert made["rank-4"].config == tn.AdaptConfig("cp", rank=4)
    assert made["rank-4"].train.seeds == (0, 1, 2)
    with pytest.raises(TaskFileError, match="no finished runs"):
        rank_table([])


def test_one_seed_has_no_deviation(tmp_path):
    table = rank_table([{"variant": f"rank-{rank}", "task": "a", "value": rank / 8} for rank in (0, 2, 2)])
    assert table[("a", "deviation")].isna().tolist() == [True, False]
    assert [_score(*row) for row in table["a"][["mean", "deviation"]].to_numpy()] == ["0.0", "25.0 ± 0.0"]
    save_figure(rank_lines(table, "one seed"), tmp_path / "ranks.png")


def test_choose_by_gradients_of_a_variant_that_is_taught(data_root, tmp_path):
    full = "\n[variants.full]\ntrain = { method = 'full' }\n"
    taught = "[variants.taught]\ntrain = { start = 'teacher', distill = { teacher = 'full' } }\n"
    (tmp_path / "r.toml").write_text((data_root / "recipe.toml").read_text() + full + taught)
    given = ["--recipe", tmp_path / "r.toml", "--variant", "taught", "--task", "folders", "--data", data_root]
    found = json.loads(ran("choose", *given, "--budget", "20%", "--images", "16", "--json"))
    assert found["cost"] <= found["budget"]


def test_choose_extract_and_train_with_the_plan(data_root, tuned, tmp_path):
    recipe, plan = data_root / "recipe.toml", tmp_path / "plan.toml"
    given = ["--recipe", recipe, "--task", "folders", "--data", data_root, "--budget", "20%", "--images", "16"]
    extras = ["--extract", tmp_path / "task", "--reestimate", "--figure", tmp_path / "p.png", "--csv", tmp_path / "p.csv"]
    found = json.loads(ran("choose", "--tuned", tuned, *given, "--out", plan, *extras, "--test", "--json"))
    assert found["cost"] <= found["budget"]
    assert found["bound"] <= found["error"] <= found["uniform"]["error"]
    assert set(found["test"]) >= {"fine-tuned", "the plan"}
    assert found["test"]["fine-tuned"]["accuracy"] > 0.8
    assert tn.read_task(tmp_path / "task").parameter_counts()["deltas"] == found["parameters"]
    assert tn.read_task(tmp_path / "task").record.classes == ["ant", "bee"]
    assert (tmp_path / "p.png").stat().st_size > 10_000
    shown = ran("choose", "--tuned", tmp_path / "task", "--budget", "100")
    assert "relative error" in shown
    (tmp_path / "recipe.toml").write_text(recipe.read_text().replace("rank = 2", 'layers = "plan.toml"'))
    (recipes,) = load_recipe(str(tmp_path / "recipe.toml")).values()
    assert recipes.config.per_layer == tn.AdaptConfig(layers=plan).per_layer, "the recipe holds what the plan says"
    here = ["--data", data_root, "--out", tmp_path / "run", "--task", "folders", "--set", "train.epochs=1"]
    ran("train", tmp_path / "recipe.toml", *here)
    made = tn.read_task(tmp_path / "run/tasks/folders")
    assert made.parameter_counts()["deltas"] == found["parameters"]
    plan.unlink()
    ran("evaluate", tmp_path / "run", "--data", data_root)
    assert "give --tuned" in refused("choose", *given, "--unit", "multiply_adds")
    by_gradient = json.loads(ran("choose", *given, "--json"))
    assert by_gradient["cost"] <= by_gradient["budget"]
    ran("extract", tuned, "--backbone", "hub:hub:tiny", "--data", data_root, "--rank", "2", "--out", tmp_path / "cp")
    assert {p.rank for p, _ in tn.read_task(tmp_path / "cp").tensors} == {2}


def test_choose_says_what_is_missing(data_root, tuned, tmp_path):
    base, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, 2)}, base)
    save_file({"a.weight": torch.ones(2, 2), "b.weight": torch.zeros(2, 2)}, other)
    assert "give --tuned" in refused("choose", "--budget", "5%")
    assert "a budget is a number" in refused("choose", "--budget", "much", "--base", tuned, "--tuned", tuned)
    assert "leave out --base" in refused("choose", "--budget", "5%", "--recipe", data_root / "recipe.toml", "--base", tuned)
    assert "nothing changed" in refused("choose", "--budget", "5%", "--base", tuned, "--tuned", tuned)
    assert "give both" in refused("choose", "--budget", "9", "--base", base, "--tuned", other, "--test")
    assert "cannot be read" in refused("extract", tmp_path / "none", "--backbone", "hub:hub:tiny", "--out", tmp_path / "x")
    given = ["extract", tuned, "--backbone", "hub:hub:tiny", "--out", tmp_path / "x", "--plan", "p.toml", "--rank", "2"]
    assert "not both" in refused(*given)


def test_similarity(run, tmp_path):
    tasks = sorted((run / "tasks").iterdir())
    for kind in ("cosine", "output", "input"):
        out = tmp_path / f"{kind}.pdf"
        found = json.loads(ran("similarity", *tasks, "--kind", kind, "--json", "--out", out, "--share", "0"))
        assert out.stat().st_size > 3000
        assert found["overall"]["folders"]["folders"] == 1
    assert "Cosine of all deltas" in ran("similarity", *tasks)
    assert "only 'folders'" in refused("similarity", tasks[0])


def test_another_plan_replaces_a_plan(tmp_path):
    text = (resources.files("tensornet.recipes") / "resnet20-domains.toml").read_text()
    (tmp_path / "a.toml").write_text('[layers]\nconv1 = "none"\n"layer1.0.conv1" = { rank = 3 }\n')
    (tmp_path / "b.toml").write_text("[layers]\nconv1 = { rank = 2 }\n")
    for before, after in (
        ('decomposition = "cp"\n', 'decomposition = "cp"\nlayers = "a.toml"\n'),
        ("[variants.cp16]\nadapt = { rank = 16 }", '[variants.cp16]\nadapt = { rank = 16, layers = "b.toml" }'),
    ):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "recipe.toml").write_text(text)
    recipes = load_recipe(str(tmp_path / "recipe.toml"))
    assert list(recipes["cp16"].config.per_layer) == ["conv1"]
    assert len(recipes["norm-head"].config.per_layer) == 2
    chosen = load_recipe(str(tmp_path / "recipe.toml"), [f"adapt.layers={tmp_path / 'b.toml'}"])
    assert list(chosen["norm-head"].config.per_layer) == ["conv1"]
    assert "is no plan" in refused("train", "resnet20-domains", "--out", tmp_path, "--set", "adapt.layers=none.toml")


def test_json_has_no_nan_and_options_are_not_ignored(run, data_root, tuned, tmp_path):
    command = ["prune", "--sweep", run, "--data", data_root, "--threshold", "0"]
    ran(*command, "--threshold", "1", "--reestimate")
    points = json.loads(ran(*command, "--threshold", "1e9", "--json"), parse_constant=pytest.fail)
    assert [p["reestimated"] is None for p in points] == [False, True] * 2
    assert "leave out --keep" in refused(*command, "--keep", "1")
    assert "are for --sweep" in refused(
        "prune", run / "tasks" / "folders", "--reestimate", "--keep", "1", "--out", tmp_path / "x"
    )
    assert "give --recipe too" in refused(
        "choose", "--budget", "9", "--tuned", run / "tasks" / "folders", "--task", "folders"
    )
    assert "give both" in refused(
        "choose", "--budget", "9", "--tuned", run / "tasks" / "folders", "--extract", tmp_path / "x"
    )
    assert "give --extract too" in refused("choose", "--budget", "9", "--tuned", tuned, "--reestimate")
    given = [
        "extract",
        tuned,
        "--backbone",
        "hub:hub:tiny",
        "--data",
        data_root,
        "--out",
        tmp_path / "x",
        "--plan",
        "p.toml",
    ]
    assert "not both" in refused(*given, "--decomposition", "tt")


def test_a_sweep_of_an_older_task_is_not_reported(run, data_root):
    from analysis.report.contents import contents

    ran("prune", "--sweep", run, "--data", data_root, "--threshold", "0")
    assert len(contents(run)["sweep"]) == 2
    stored = json.loads((run / "sweep.json").read_text())
    stored["points"][0]["sha256"] = "0" * 64
    (run / "sweep.json").write_text(json.dumps(stored))
    assert len(contents(run)["sweep"]) == 1


def test_images_are_drawn_at_random(data_root):
    from analysis.selection.setting import Setting

    setting = Setting(str(data_root / "recipe.toml"), "", "folders", data_root, 20)
    labels = torch.cat([y for _, y in setting._batches()])
    assert len(labels) == 20
    assert set(labels.tolist()) == {0, 1}, "though the folder lies class by class"


def test_ranks_says_in_json_what_would_run(data_root, tmp_path):
    args = ("ranks", data_root / "recipe.toml", "--data", data_root, "--rank", 1, "--out", tmp_path / "out", "--check")
    told = json.loads(ran(*args, "--json"))
    assert (told["runs"], told["done"]) == (2, 0)
    assert [(one["task"], one["train"], one["test"], one["classes"]) for one in told["tasks"]] == [
        ("folders", 48, 20, ["ant", "bee"]),
        ("parquet", 72, 30, ["up", "down", "left"]),
    ]
    shown = ran(*args)
    assert all(word in shown for word in ("folders", "48", "ant, bee", "up, down, left"))
    (tmp_path / "plan.toml").write_text('[layers]\n"0" = { decomposition = "tucker", rank = 2 }\n')
    for settings, said in (((), False), (("--set", f"adapt.layers={tmp_path / 'plan.toml'}"), True)):
        done = CliRunner().invoke(app, [*map(str, args), *settings])
        assert done.exit_code == 0
        assert ("choices per layer of [adapt] are left out" in done.stderr) == said


@pytest.mark.parametrize(("figure", "words"), [("f.jpg", "written as .png"), ("absent/f.png", "there is no folder")])
def test_a_figure_that_cannot_be_written_is_refused_before_any_work(figure, words, run, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = data_root / "recipe.toml"
    for args in (
        ("norms", run / "tasks/folders", "--out", figure),
        ("similarity", run / "tasks/folders", run / "tasks/parquet", "--out", figure),
        ("choose", "--tuned", run / "tasks/folders", "--budget", "10%", "--figure", figure),
        ("prune", "--sweep", run, "--data", data_root, "--out", figure),
        ("ranks", recipe, "--data", data_root, "--rank", 1, "--out", "runs", "--figure", figure),
    ):
        assert words in refused(*args, code=2), args
    for name in ("--out", "--csv"):
        said = refused("choose", "--tuned", run / "tasks/folders", "--budget", "10%", name, "absent/file", code=2)
        assert "there is no folder absent" in said
    assert not (tmp_path / "runs").exists()
    assert not (run / "sweep.json").exists()
