"""The report of your own images: mistakes lead to their files, on a phone, too; and the page of a comparison."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import BROWSER
from conftest import ROOT
from PIL import Image
from trained import train_here

pytestmark = pytest.mark.usefixtures("own_path")
CLASSES = ("ant <b>", "a class with a name that is as long as names of classes are where nobody thought of phones", "cow")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Noise of three classes, of which one has a strange name: most of it is misclassified. And a run on it."""
    place = tmp_path_factory.mktemp("files")
    for split, count in (("train", 4), ("test", 6)):
        for name in CLASSES:
            (place / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.effect_noise((40, 36), 100 + number).convert("RGB")
                image.save(place / "photos" / split / name / f"{number} #{split}.png")
    flags = ("--data", place / "photos", "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1)
    flags = (*flags, "--batch", 6, "--validation", 0)
    train_here(ROOT / "recipes/custom.py", *flags, "--out", place / "runs/a")
    return place


@pytest.fixture(scope="module")
def shown(place):
    return json.loads((place / "runs/a/predictions.json").read_text())


def test_every_mistake_is_listed_with_its_file(place, shown):
    """By true and predicted class: as often as the confusion matrix has them."""
    wrong = [(of["true"], of["predicted"]) for of in shown["wrong"]]
    counts = {(row, column): count for row, of in enumerate(shown["counts"]) for column, count in enumerate(of) if row != column}
    assert {pair: wrong.count(pair) for pair in counts} == counts
    assert len(wrong) > 6
    for of in shown["wrong"]:
        assert Path(of["path"]).parts[:2] == ("test", shown["classes"][of["true"]])


def test_links_of_the_page_lead_to_the_files(place, shown):
    """Those of the mistakes that are shown, and of all that are listed; names are text."""
    page = (place / "runs/a/report.html").read_text()
    addresses = [html.unescape(of) for of in re.findall(r'<a href="([^"]*)"', page)]
    files = [(place / "photos" / of["path"]).as_uri() for of in [*shown["mistakes"], *shown["wrong"]]]
    assert sorted(addresses) == sorted(files)
    assert "ant <b>" not in page
    assert "ant &lt;b&gt; taken for" in page


def test_files_that_are_gone_are_named_without_a_link(place, shown, tmp_path):
    from launch.report import page
    from launch.report.runs import read_result

    run = Path(shutil.copytree(place / "runs/a", tmp_path / "run"))
    (run / "predictions.json").write_text(json.dumps(shown | {"source": str(tmp_path / "nowhere")}))
    page.write(run, read_result(run))
    text = (run / "report.html").read_text()
    assert "<a href" not in text
    assert html.escape(shown["wrong"][0]["path"]) in text


def test_a_comparison_has_a_page_with_links_to_the_reports(place, oneloop, tmp_path):
    code, out, _ = oneloop("compare", place / "runs", "--out", tmp_path / "compared")
    page = (tmp_path / "compared/compare.html").read_text()
    assert (code, str(tmp_path / "compared/compare.html") in out) == (0, True)
    assert f'<a href="{(place / "runs/a/report.html").as_uri()}">a</a>' in page
    assert page.count("data:image/png;base64,") == len([*(tmp_path / "compared").glob("*.png")]) > 0


def width(page: Path, pixels: int, tmp_path: Path) -> int:
    """How many pixels the page needs in a window so wide, by a real browser."""
    (tmp_path / "page.html").write_text(page.read_text() + (
        "<script>parent.postMessage(document.scrollingElement.scrollWidth, '*')</script>"
    ))  # fmt: skip
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = event => document.documentElement.dataset.width = event.data</script>"
        f"<iframe width={pixels} height=800 src=page.html></iframe>"
    )
    profile = f"--user-data-dir={tmp_path / 'browser'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000")
    command = [BROWSER, *flags, profile, "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(re.search(r'data-width="(\d+)"', done.stdout)[1])


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize("pixels", [390, 1280])
def test_pages_fit_a_phone_and_a_screen(place, oneloop, tmp_path, pixels):
    oneloop("compare", place / "runs", "--out", tmp_path / "compared")
    for page in (place / "runs/a/report.html", tmp_path / "compared/compare.html"):
        assert width(page, pixels, tmp_path) <= pixels, page


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_control_a_page_that_is_too_wide_is_noticed(place, tmp_path):
    wide = tmp_path / "wide.html"
    page = (place / "runs/a/report.html").read_text()
    wide.write_text(page.replace("min-width: 0", "min-width: 60rem").replace("overflow-x: auto", ""))
    assert width(wide, 390, tmp_path) > 390
