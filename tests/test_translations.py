"""Chinese pages are in step with the English ones: headings, code, tables, lists, figures; their words are docs/glossary.md's."""

import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

TWINS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.zh-CN.md"), *ROOT.glob("docs/*.zh-CN.md")))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def english_of(page: str) -> Path:
    return ROOT / page.replace(".zh-CN.md", ".md")


def outline(text: str) -> dict[str, list]:
    """The parts of a page that a translation leaves as they are. Comments in code are translated, so they do not count."""
    prose = FENCED.sub("", text)
    return {
        "headings, by level": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "code blocks": [re.sub(r"\s+# .*", "", block) for block in FENCED.findall(text)],
        "table rows, by number of cells": [row.count(" | ") for row in re.findall(r"^\|.*", prose, re.MULTILINE)],
        "code in first cells": re.findall(r"^\| (`[^`]+`)", prose, re.MULTILINE),
        "list items": re.findall(r"^(?:-|\d+\.) ", prose, re.MULTILINE),
        "pictures": re.findall(r"!\[.*?\]\((.*?)\)", prose),
        "figures": sorted(Counter(re.findall(r"\d[\d,]*\.\d+", text)).items()),
        "flags and commands": sorted(set(re.findall(r"`(--[\w-]+|oneloop \w+)", prose))),
    }


def differences(english: str, chinese: str) -> list[str]:
    ours, theirs = outline(english), outline(chinese)
    return [f"{part}: {ours[part]} != {theirs[part]}" for part in ours if ours[part] != theirs[part]]


@pytest.mark.parametrize("page", TWINS)
def test_translation_is_in_step(page):
    assert not differences(english_of(page).read_text(), (ROOT / page).read_text())


@pytest.mark.parametrize(
    ("part", "was", "now"),
    [
        ("headings", "## 保证", "### 保证"),
        ("code", "recipes/cifar2.py  ", "recipes/cifar2.py --net Net  "),
        ("code", "```sh\nmake demo", "```sh\nmake check"),
        ("table", "| `mnist.py` |", "`mnist.py`"),
        ("list", "- 想要", "想要"),
        ("pictures", "killed.png", "ablations.png"),
        ("figures", "0.9411", "0.9417"),
        ("flags", "`--fresh`", "`--new`"),
    ],
)
def test_control_a_page_that_is_out_of_step_is_noticed(part, was, now):
    chinese = (ROOT / "README.zh-CN.md").read_text()
    assert was in chinese
    assert any(line.startswith(part) for line in differences((ROOT / "README.md").read_text(), chinese.replace(was, now, 1)))


def unwanted(text: str) -> list[str]:
    """Words of `text` that docs/glossary.md rules out in its third column, where 、 separates them."""
    rows = re.findall(r"^\| .* \| .* \| (.+?) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)[2:]
    words = [word for row in rows for word in row.split("、") if word != "–"]
    assert len(words) > 20
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", text))
    return [word for word in words if word in prose]


@pytest.mark.parametrize("page", TWINS)
def test_words_of_the_glossary(page):
    assert not unwanted((ROOT / page).read_text())


def test_control_another_word_is_noticed():
    assert unwanted("朴素的 SGD，每个 batch 有 4 张图片；`--batch`") == ["图片", "batch", "朴素"]
