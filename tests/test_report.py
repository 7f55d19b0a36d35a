"""`dit-scale report`: a real run's page in a real browser without network, and the thinning of long runs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from dit_scale.report.charts import charts_of, smoothed
from dit_scale.report.reading import MOST_POINTS, read_record
from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
from tests.end_to_end.runs import settings
from tests.launch import run

_LOCAL = ("file:", "data:")
NAME = "<script>alert(1)</script>"
OVERRIDES = [
    "preview.every_steps=4",
    "preview.samples_per_class=1",
    "preview.num_sampling_steps=2",
    "preview.cfg_scale=2",
    "evaluation.every_steps=4",
    "evaluation.num_images=16",
    "evaluation.num_sampling_steps=1",
    "data.held_out_fraction=0.2",
    "validation.every_steps=4",
]


@pytest.fixture(scope="module")
def run_dir(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run with a restart, its name a trap."""
    folder = tmp_path_factory.mktemp("report") / NAME.replace("/", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        for steps in (8, 12):
            run(settings(shards, folder, *OVERRIDES, f"train.steps={steps}"))
    (folder / "samples" / "step-00000010.png").write_bytes(b"torn")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss": 0.')  # a line that is being written
    run(["report", folder])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is not here; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, run_dir: Path) -> Iterator[Page]:
    """The page, opened from its file with the network cut; anything it complains of or asks for is a failure."""
    context = browser.new_context(offline=True, color_scheme=request.param, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append("a dialog") or dialog.dismiss())
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
    )
    page.goto((run_dir / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
    yield page
    assert troubles == []
    context.close()


def test_charts_show_every_step_and_the_restart(page: Page) -> None:
    loss: list[dict[str, Any]] = page.evaluate(
        "document.getElementById('chart-loss').data.map(d => ({name: d.name, x: d.x}))"
    )
    by_name = {trace["name"]: trace["x"] for trace in loss}
    assert by_name["smoothed"] == list(range(1, 13))
    assert by_name["restart"] == [8]
    for chart in ("grad-norm", "throughput", "times", "learning-rate", "validation", "evaluation-0"):
        assert page.locator(f"#chart-{chart} .main-svg").count() > 0, chart
    assert page.evaluate("document.getElementById('chart-validation').data[0].x") == [4, 8, 12]
    assert page.evaluate("document.getElementById('chart-evaluation-0').data[0].x") == [4, 8, 12]
    assert page.locator("h1").inner_text() == NAME.replace("/", "")
    assert page.get_by_text("1 restart, ").count() == 1


def test_the_slider_goes_through_the_previews(page: Page) -> None:
    slider = page.locator("#preview-slider")
    seen = set()
    for place, step in enumerate((4, 8, 12)):
        slider.fill(str(place))
        assert page.locator("#preview-step").inner_text() == f"at step {step}"
        seen.add(page.locator("#preview").get_attribute("src"))
        assert page.evaluate("document.getElementById('preview').decode().then(() => true)")
    assert len(seen) == 3


def test_it_fits_a_telephone(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 400")  # charts are drawn anew some time later
    page.wait_for_function("document.querySelector('#chart-loss .main-svg').getBoundingClientRect().width <= 400")


def test_settings_and_versions_are_on_it(page: Page) -> None:
    for summary in ("Settings", "System and versions", "How it was measured"):
        page.get_by_text(summary, exact=True).click()
    text = page.locator("main").inner_text()
    for words in ("global_batch_size: 8", "torch ", "on 1 x CPU", "reference.kind", "decoded latents"):
        assert words in text, words


def test_what_is_no_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ([tmp_path], "is not a run folder"),
        ([run_dir, "--out", tmp_path / "nowhere" / "page.html"], "nowhere"),
    ):
        failed = run(["report", *arguments], check=False)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1), failed.stderr
        assert sentence in failed.stderr


def test_a_long_run_is_thinned_and_keeps_its_extremes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 50000}\n")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 50_001):
            loss = 9.0 if step == 31_415 else None if step == 7 else 1.0
            line = {"step": step, "loss": loss, "step_seconds": 1.0, "images_per_second": 8.0}
            line["losses"] = {"mse": loss} if step < 40_000 else {"mse": loss, "likeness": 0.5}
            file.write(json.dumps(line) + "\n")
    record = read_record(tmp_path)
    curve = record.curves["loss"]
    assert MOST_POINTS / 2 < len(curve.steps) <= MOST_POINTS + 1
    assert curve.steps[-1] == 50_000
    assert max(curve.most) == 9.0
    assert record.curves["mfu"].steps == []
    (terms,) = (json.loads(chart.figure)["data"] for chart in charts_of(record) if chart.name == "losses")
    assert [trace["name"] for trace in terms] == ["likeness", "mse"]
    assert terms[1]["x"] == curve.steps
    assert terms[0]["x"] == [step for step in curve.steps if step >= 40_000]
    assert set(terms[0]["y"]) == {0.5}


def test_time_lost_is_between_the_steps_that_count(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    times = {1: 10.0, 2: 12.0, 3: 114.0, 4: 116.0}  # a hundred seconds between 2 and 3, where a step takes 2
    lines = [
        {"step": step, "time": time, "step_seconds": 2.0, "images_per_second": 4.0} for step, time in times.items()
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = [(8.0, 0), (50.0, 2), (90.0, 2)]  # the second came no further
    events = [{"event": "start", "time": time, "step": step} for time, step in starts]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (restart,) = read_record(tmp_path).restarts
    assert (restart.step, restart.cause, restart.lost_seconds) == (2, "killed, killed", pytest.approx(100.0))


def test_smoothing_has_no_bias_at_its_beginning() -> None:
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([]) == []
