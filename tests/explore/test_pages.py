"""Pages in a real browser: what they draw, load and show."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import attnprobe as ap
from attnprobe.errors import UsageError
from attnprobe.explore.page import Subject, page
from attnprobe.explore.view import BINS
from attnprobe.networks.base import Probe
from attnprobe.networks.transformer import TransformerNetwork
from attnprobe.report.page import write_report
from attnprobe.tables import MEASURES
from attnprobe.tasks import TASKS, DataSpec, Split, Task

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Return a function that opens a page, and fails if it logs anything or asks for anything else."""

    @contextmanager
    def opens(path, width=1400):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        problems = []
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url) if request.url[:4] == "http" else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        yield tab
        assert problems == []
        tab.close()

    return opens


@pytest.fixture(scope="module")
def report(spt_run, tmp_path_factory):
    """Page of a run with two checkpoints, on few sequences."""
    folder = tmp_path_factory.mktemp("report")
    run = folder / "run"
    shutil.copytree(spt_run.folder, run)
    for path in sorted((run / "checkpoints").glob("*.pt"))[1:-1]:
        path.unlink()
    return write_report(run, folder / "out", progress=False, sequences=3, nulls=1)


def test_a_page_draws_every_section_at_every_width_without_requests(report, opened):
    for width in (390, 1400):
        with opened(report, width) as tab:
            for name in MEASURES:
                assert tab.locator(f"section:has(h2#{name}) figure:visible svg").count() >= 2, name
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.get_by_text("light / dark").click()  # draws everything again
            tab.wait_for_function("document.querySelectorAll('figure:not([hidden]) svg').length > 8")


def test_the_page_says_what_a_contrast_does_not_show(report):
    text = report.read_text(encoding="utf-8")
    assert text.count("the measure positions separates content from position") == 1


def test_the_numbers_on_a_page_are_those_of_the_result_at_the_chosen_step_and_head(report, opened):
    result = ap.open_result(report.parent / "proximity_over_steps.nc")
    with opened(report) as tab:

        def shown():
            tab.wait_for_function("document.body.dataset.drawn !== 'old'")
            row = tab.locator("#table-proximity tbody tr", has_text="mean_distance").first
            return float(row.locator("td").nth(1).inner_text(timeout=2000).replace("−", "-"))

        tab.locator("section:has(h2#proximity) summary").first.click()
        for step, head in ((-1, 0), (0, 0), (0, 1)):
            tab.evaluate("document.body.dataset.drawn = 'old'")
            tab.locator("#head").select_option(str(head))
            tab.locator("#step").fill(str(len(result["step"]) - 1 if step == -1 else 0))
            expected = float(result["mean_distance"].isel(step=step, layer=0, head=head))
            assert shown() == pytest.approx(expected, rel=1e-4)


def test_the_slider_and_a_click_on_a_head_change_the_charts(report, opened):
    with opened(report) as tab:
        line = "section:has(h2#proximity) .mark-line path"
        before = tab.locator(line).evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
        tab.evaluate("document.body.dataset.drawn = 'old'")
        tab.locator("#step").fill("0")
        tab.wait_for_function("document.body.dataset.drawn !== 'old'")
        after = tab.locator(line).evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
        assert before != after
        head = tab.locator("#head").input_value()
        cells = tab.locator("section:has(h2#proximity) figure").first.locator(".mark-rect path")
        for index in range(cells.count()):
            cells.nth(index).click(force=True)
        tab.wait_for_function(f"document.getElementById('head').value !== '{head}'")


def test_the_end_of_a_stage_is_marked_at_its_step(report, spt_run, opened):
    (_, end), *_ = spt_run.config.stages
    with opened(report) as tab:
        figure = tab.locator("section:has(h2#proximity) figure", has_text="end of a stage").first
        places = figure.locator(".mark-rule.role-mark line").evaluate_all(
            "lines => lines.map(line => [line.getAttribute('stroke-dasharray'), line.getBoundingClientRect().x])"
        )
        ((_, solid),) = [place for place in places if place[0] is None]
        ((_, chosen),) = [place for place in places if place[0] is not None]  # at the last step
        left = figure.locator(".mark-line path").first.bounding_box()["x"]
    assert (solid - left) / (chosen - left) == pytest.approx(end / spt_run.checkpoints[-1].step, abs=0.02)


def test_hovering_shows_the_number_that_the_result_holds(report, opened):
    result = ap.open_result(report.parent / "proximity_over_steps.nc").isel(step=-1)
    with opened(report) as tab:
        tab.locator("section:has(h2#proximity) figure").first.locator(".mark-rect path").first.hover(force=True)
        text = tab.locator("#vg-tooltip-element").inner_text()
        found = dict(re.findall(r"(layer|head|value)\s+([-−\d.e]+)", text))
        expected = result["proximity_contrast"].sel(layer=int(found["layer"]), head=int(found["head"]))
        assert float(found["value"].replace("−", "-")) == pytest.approx(float(expected), rel=1e-4)


def test_numbers_are_downloaded_as_csv(report, opened):
    with opened(report) as tab:
        with tab.expect_download() as download:
            tab.locator("button[data-csv=proximity]").click()
        lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("run,step,layer,head,statistic,unit,value,low,high")
    result = ap.open_result(report.parent / "proximity_over_steps.nc")
    rows = [line.split(",") for line in lines if line.split(",")[4] == "entropy" and line.startswith("run")]
    assert len(rows) >= result["entropy"].size


def test_texts_of_files_stay_text(spt_run, tmp_path, opened):
    evil = "<script>document.title='gone'</script><b id=evil>"
    result = ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1)
    result["entropy"].attrs["units"] = evil
    subject = Subject(evil, {"task": evil}, [{"step": 0, "objective": evil, "train_loss": 1.0}], {"proximity": result})
    path = tmp_path / "page.html"
    path.write_text(page(evil, evil, [subject], {"proximity": evil}, evil), encoding="utf-8")
    with opened(path) as tab:
        assert tab.locator("#evil").count() == 0 and tab.title().startswith("<script>")
        tab.locator("summary").first.click()
        assert tab.locator("#table-proximity", has_text="<b id=evil>").count() == 1


def test_a_page_holds_no_more_than_it_should(report):
    assert report.stat().st_size < 4e6  # one million of it is Vega


def test_a_view_shows_scores_and_pattern_of_the_sequence(spt_run, tmp_path, opened):
    checkpoint = spt_run.checkpoints[-1]
    view = ap.view(checkpoint, sequence=2, head=1)
    data = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', view.html).group(1))
    cubes = {cube["label"]: cube for cube in data["cubes"]}
    _, cache = checkpoint.model.run_with_cache(checkpoint.tokens(3)[2:])
    pattern = cache["blocks.0.attn.hook_pattern"][0]
    score = cache["blocks.0.attn.hook_attn_scores"][0]
    centred = score - score.mean(-1, keepdim=True)
    for name, expected in (("pattern", pattern), ("score", centred)):
        shape = [len(values) for values in cubes[name]["axes"].values()]
        found = np.array(cubes[name]["columns"]["value"]).reshape(shape)[0, 0]
        np.testing.assert_allclose(found, expected.numpy(), rtol=5e-3, atol=1e-6 + 5e-4 * float(expected.abs().max()))
    assert data["start"]["head"] == 1
    with opened(view.save(tmp_path / "view.html")) as tab:
        assert tab.locator("figure:visible svg").count() == 4  # all heads, score, pattern, position term


def test_a_view_of_a_long_sequence_is_averaged_over_bins(tmp_path):
    n = 200
    rng = np.random.default_rng(0)
    split = Split(rng.integers(6, size=(4, n)), np.zeros(4, dtype=int))
    data = DataSpec(n=n, inputs="tokens", classes=2, vocabulary=6)
    task = Task("long", data, split, split)
    config = ap.TrainConfig(model=ap.ModelConfig(n_layers=1, n_heads=1, d_model=8))
    model = ap.Transformer(config.model, data)
    view = ap.view(Probe(TransformerNetwork(model, config, lambda: task), lambda: task))
    found = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', view.html).group(1))
    (cube,) = (cube for cube in found["cubes"] if cube["label"] == "pattern")
    values = np.array(cube["columns"]["value"]).reshape(BINS, BINS)
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.from_numpy(split.inputs[:1]))
    bins = np.arange(n) * BINS // n
    means = np.eye(BINS)[bins] / np.bincount(bins)
    expected = means.T @ cache["blocks.0.attn.hook_pattern"][0, 0].numpy() @ means
    np.testing.assert_allclose(values, expected, rtol=5e-3)


def test_views_refuse_what_does_not_exist(spt_run):
    checkpoint = spt_run.checkpoints[-1]
    for arguments, message in (
        ({"sequence": 10**6}, "sequence=1000000: must be 0 ... "),
        ({"layer": 7}, "layer=7: must be 0 ... 0"),
        ({"head": -1}, "head=-1: must be 0 ... "),
        ({"tokens": ["a"]}, "tokens: 1 texts; must be "),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            ap.view(checkpoint, **arguments)
    with pytest.raises(UsageError, match="compare: 1 subjects; must be at least 2"):
        ap.compare([checkpoint])


def test_tasks_name_their_ids():
    named = {"text": {65: "A", 10: "0x0a"}, "listops": {3: "[MIN"}, "retrieval": {256: "[separator]"}}
    for name, expected in named.items():
        task = TASKS[name]
        assert len(task.symbols) == task().data.vocabulary
        assert {index: task.symbols[index] for index in expected} == expected


def test_a_comparison_shows_runs_side_by_side(spt_run, tmp_path, opened):
    checkpoints = spt_run.checkpoints
    view = ap.compare({"first": checkpoints[0], "last": checkpoints[-1]}, sequences=4, nulls=1)
    with opened(view.save(tmp_path / "compared.html")) as tab:
        captions = tab.locator("figure:visible figcaption span", has_text="of all heads").all_inner_texts()
        assert captions == ["of all heads: first", "of all heads: last"]
    data = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', view.html).group(1))
    assert data["runs"] == ["first", "last"]
    assert "<iframe" in view._repr_html_() and "&lt;!doctype html&gt;" in view._repr_html_()


def test_a_comparison_averages_runs_that_differ_in_their_seed_only(spt_run):
    first = ap.proximity(spt_run.checkpoints[-1], sequences=4, nulls=1)

    def of(shift, **settings):
        config = json.loads(first.attrs["config"]) | settings
        result = first.assign_attrs(config=json.dumps(config))
        return result.assign(mean_distance=result["mean_distance"] + shift)

    results = [of(0, seed=0), of(1, seed=1), of(5, seed=0, recipe="supervised")]
    view = ap.compare(results)
    data = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', view.html).group(1))
    assert data["runs"] == ["recipe=spt (2 seeds)", "recipe=supervised"]
    both, other = (cube for cube in data["cubes"] if cube["label"] == "mean_distance")
    order = np.argsort(-first["proximity_contrast"].values[0])  # heads of several networks are ranks
    expected = first["mean_distance"].values[0]
    np.testing.assert_allclose(both["columns"]["value"], expected[order] + 0.5, rtol=1e-4)
    np.testing.assert_allclose(other["columns"]["value"], expected + 5, rtol=1e-4)


def test_a_view_of_a_model_names_its_row_and_ids():
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=12)
    ids = torch.randint(50, (6, 10), generator=torch.Generator().manual_seed(0))
    view = ap.view(GPT2LMHeadModel(config).eval(), {"input_ids": ids}, sequence=1)
    data = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', view.html).group(1))
    assert data["names"] == [str(token) for token in ids[2].tolist()]  # every second row is reference data
    assert "Row 2, 10 tokens." in view.html
