"""The report: one page that works offline, in a real browser."""

import json
import shutil
import time

import pytest

import analysis
import tensornet as tn
from analysis.pruning import pruned_file
from analysis.report.contents import contents
from tensornet.errors import ConfigError, RecipeError, WriteError
from tests.commands import ran, refused

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,900",
)


@pytest.fixture(scope="module")
def page(trained_run, data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = shutil.copytree(trained_run, folder / "run")
    ran("prune", "--sweep", run, "--data", data_root, "--reestimate", "--threshold", "0", "--threshold", "1e3")
    plan = folder / "plan.toml"
    ran("choose", "--tuned", run / "tasks" / "folders", "--budget", "60", "--out", plan)
    ran("report", run, "--plan", plan, "--out", folder / "report.html")
    return run, folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def opened(browser, path):
    browser.get(path.as_uri())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not browser.find_element("id", "live").text:
        time.sleep(0.05)
    return browser


def left(browser):
    """The table under the slider, by task."""
    rows = browser.find_elements("css selector", "#left tbody tr")
    return {row.find_element("tag name", "th").text: [c.text for c in row.find_elements("tag name", "td")] for row in rows}


def test_the_slider_agrees_with_prune(page, browser):
    run, path = page
    opened(browser, path)
    assert browser.get_log("browser") == [], "no error and nothing missing"
    for kind in ("delta", "relative"):
        browser.find_element("css selector", f"#kind option[value={kind}]").click()
        norms = analysis.norms(sorted((run / "tasks").iterdir()), kind=kind)
        seen = set()
        for position in range(0, 1001, 50):
            browser.execute_script(
                "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
                position,
            )
            threshold = float(browser.find_element("id", "exact").get_property("value"))
            assert threshold == pytest.approx(1.02 * float(norms.max().max()) * position / 1000, rel=1e-4)
            table = left(browser)
            seen.add(json.dumps(table))
            for task in ("folders", "parquet"):
                file = tn.read_task(run / "tasks" / task)
                gone = bool((norms[task].dropna() < threshold).all())
                pruned = pruned_file(file, keep=0) if gone else pruned_file(file, threshold=threshold, kind=kind)
                kept, parameters, whole, *_ = table[task]
                assert kept == f"{len(norms) - len(pruned.removed)} of {len(norms)}"
                counts = pruned.file.parameter_counts()
                assert parameters == f"{counts['deltas']:,}"
                assert whole == f"{counts['total']:,}"
        assert len(seen) >= 3, "the table follows the slider"
        assert "0 of 4 deltas stay" in browser.find_element("id", "live").text


def test_the_keyboard_moves_the_slider_and_swept_accuracy_shows(page, browser):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page[1])
    slider = browser.find_element("id", "slider")
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    assert float(browser.find_element("id", "exact").get_property("value")) > 0
    assert slider.get_attribute("aria-valuetext") == browser.find_element("id", "live").text.split()[1].rstrip(":")
    points = json.loads((page[0] / "sweep.json").read_text())["points"]
    slider.send_keys(Keys.END)
    for task in ("folders", "parquet"):
        whole = next(p for p in points if p["task"] == task and p["removed"] == p["layers"])
        assert left(browser)[task][3:] == [f"{100 * whole['accuracy']:.1f}", f"{100 * whole['reestimated']:.1f}"]


@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_phones_and_dark_rooms(page, browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    colours = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        opened(browser, page[1])
        wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= seen, "nothing sticks out sideways"
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert browser.find_elements("css selector", "#norm-plot svg")
    assert colours[0] != colours[1]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_has_a_name_for_screen_readers(page, browser):
    opened(browser, page[1])
    named = browser.find_elements("css selector", "input, select, [role=img], [role=region]")
    for element in [element for element in named if element.is_displayed()]:
        assert element.accessible_name.strip(), element.get_attribute("outerHTML")[:200]
    assert browser.find_element("tag name", "html").get_attribute("lang") == "en"
    assert [h.text for h in browser.find_elements("tag name", "h1")] == ["Report on run"]


def test_the_page_needs_nothing_else(page):
    text = page[1].read_text()
    head = text[: text.index("<script>")]
    assert "http" not in head
    assert text.count("<script src") == 0
    assert "<link" not in head


def test_thirty_tasks_are_a_map_and_every_backbone_is_named(page, browser, tmp_path):
    run = shutil.copytree(page[0], tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    results = json.loads((run / "results.json").read_text())
    for i in range(30):
        shutil.copytree(run / "tasks/folders", run / f"tasks/task{i}")
        recipe[""]["tasks"].append({"name": f"task{i}", "data": "folders"})
        results["runs"].append(results["runs"][0] | {"task": f"task{i}"})
    results["runs"][-1] |= {"backbone": "hub:hub:another", "backbone_hash": 64 * "b"}
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "results.json").write_text(json.dumps(results))
    ran("report", run, "--out", tmp_path / "many.html")
    opened(browser, tmp_path / "many.html")
    said = browser.find_element("tag name", "body").text
    assert "Backbones hub:hub:tiny" in said
    assert "hub:hub:another" in said
    kinds, rows, height = browser.execute_script(
        "const plot = document.getElementById('norm-plot');"
        "return [plot.data.map((d) => d.type), plot.data[0].y.length, plot.getBoundingClientRect().height]"
    )
    assert (kinds, rows) == (["heatmap"], 32)
    assert height > 32 * 15
    browser.execute_script("const s = document.getElementById('slider'); s.value = 500; s.dispatchEvent(new Event('input'))")
    assert "of 64 deltas stay" in browser.find_element("id", "live").text
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_names_cannot_break_the_page(page, tmp_path):
    from analysis.report.page import render

    data = contents(page[0])
    data["run"] = "</script><b>x"
    data["groups"][0]["tasks"][0]["name"] = "</script><img src=x>"
    text = render(data)
    assert "<b>x" not in text
    assert "<img src=x>" not in text
    analysis.report(page[0], tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size > 1_000_000


def test_refusals(page, tmp_path):
    run, _ = page
    with pytest.raises(RecipeError, match="is not a folder that 'tensornet train' wrote"):
        analysis.report(tmp_path, tmp_path / "r.html")
    with pytest.raises(ConfigError, match="is no plan"):
        analysis.report(run, tmp_path / "r.html", plans=[tmp_path / "none.toml"])
    with pytest.raises(WriteError, match="cannot write"):
        analysis.report(run, tmp_path / "absent" / "r.html")
    assert "cannot write" in refused("report", run, "--out", tmp_path / "absent" / "r.html")
