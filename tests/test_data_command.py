"""`oneloop data`: what the terminal and the page show."""

import base64
import io
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from photos import write_bad, write_photos
from PIL import Image

TEXT = """\
{place}
45 files opened

44 images, 2 classes; {train} train, {validation} validation, {test} test
class  images  train  validation  test  bad              
─────────────────────────────────────────────────────────
[red]      40     {cats}    0  ████████████
dog         4     {dogs}    1  █▏          

width×height: smallest 24×16, median 24×16, largest 24×16
Pillow modes: 44 RGB
in memory or on disk: {files} as files; decoded, 6.6 MB at 224×224, 50.7 kB at their own sizes
imbalance: the largest class has 10 times the images of the smallest
ignored: 1 .txt
1 bad file:
  dog/x.jpg: empty file: 0 bytes
to train on them: oneloop train custom --data {quoted} --skip-bad
"""  # noqa: W291


@pytest.fixture
def place(tmp_path):
    """Two classes, one of them called like a colour of rich's."""
    place = write_photos(tmp_path / "<b>my photos", {"[red]": 40, "dog": 4})
    (place / "dog/x.jpg").touch()
    (place / "dog/notes.txt").touch()
    return place


def test_what_is_shown(oneloop, place):
    code, out, _ = oneloop("data", place)
    shape = re.escape(TEXT)
    for name in ("train", "validation", "test"):
        shape = shape.replace(re.escape(f"{{{name}}}"), r"\d+")
    shape = shape.replace(r"\{quoted\}", re.escape(shlex.quote(str(place))))
    shape = shape.replace(r"\{place\}", re.escape(str(place))).replace(r"\{files\}", r"\d+\.\d kB")
    shape = re.sub(r"(\\ )*\\{(cats|dogs)\\}(\\ )*", r"[ \\d]+", shape)
    assert code == 4
    assert re.fullmatch(shape, out), out
    assert max(map(len, out.splitlines()[3:-2])) <= 100


def test_long_names_and_many_classes_fit_80_columns(oneloop, tmp_path):
    place = write_photos(
        tmp_path, {"a class with a very long name that goes on": 1, "\x1b[31m": 1, **{f"{n}": 1 for n in range(30)}, "bad": 0}
    )
    write_bad(place / "bad")
    _, out, _ = oneloop("data", place)
    table = out[out.index("class  ") : out.index("\n\n", out.index("class  "))].splitlines()
    assert len(table) == 2 + 33
    assert max(map(len, table)) <= 80
    assert "a class with a very…  " in out
    assert re.match("class +images +train +validation +test +bad", table[0])
    assert "\x1b" not in out


def test_what_was_known_is_said(oneloop, place):
    oneloop("data", place)
    said = "0 files opened, 45 known from before (checked: the size and time of each, not its content)"
    assert said in oneloop("data", place)[1].splitlines()
    (place / "dog/y.jpg").touch()
    assert oneloop("data", place)[1].splitlines()[1].startswith("1 file opened, 45 known")


def test_it_loads_no_torch_and_answers_at_once(place):
    code = (
        "import sys, time; begun = time.process_time()\n"
        "from launch.commands import main\n"
        "main(['data', sys.argv[1], '--html', sys.argv[1] + '.html'])\n"
        "assert not {'torch', 'pyarrow', 'pandas', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert time.process_time() - begun < 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


def test_the_page_shows_everything_and_loads_nothing(oneloop, place, tmp_path):
    write_bad(place / "dog")
    (place / "dog/lost.jpg").unlink()
    shutil.copy(place / "[red]/0000.jpg", place / "dog/wrong.jpg")
    assert oneloop("data", place, "--html", tmp_path / "page.html")[0] == 4
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"src=\"(?!data:)|href=\"(?!file:)|@import|url\(", page)
    assert "<b>my photos" not in page  # escaped
    assert "<h1>&lt;b&gt;my photos</h1>" in page
    for said in ("dog/page.jpg", "a web page (HTML), not an image", "[red]/0000.jpg ([red])", "dog/wrong.jpg (dog)", ".txt"):
        assert f">{said}" in page or f"<br>{said}" in page, said
    shown = [Image.open(io.BytesIO(base64.b64decode(each))) for each in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert [each.size for each in shown] == [(96, 96)] * (10 + 5 + 2)
    assert all(high - low > 50 for each in shown for low, high in each.getextrema())


def test_a_page_of_bad_files_alone(oneloop, tmp_path):
    write_bad(tmp_path / "set/a")
    write_bad(tmp_path / "set/b")
    code, out, error = oneloop("data", tmp_path / "set", "--html", tmp_path / "page.html")
    assert (code, error.count("\n")) == (4, 1)
    assert "without a usable image: a, b" in out
    assert "letter.jpg" in (tmp_path / "page.html").read_text()


def test_a_table_is_not_replaced_by_what_is_written(oneloop, tmp_path):
    write_photos(tmp_path, {"": 1})
    (tmp_path / "table.csv").write_text("path,label,more\n0000.jpg,x,kept\n")
    for flag in ("--html", "--write-split"):
        code, _, error = oneloop("data", tmp_path / "table.csv", flag, tmp_path / "table.csv")
        assert (code, error.count("\n")) == (2, 1)
    assert (tmp_path / "table.csv").read_text() == "path,label,more\n0000.jpg,x,kept\n"


def test_what_cannot_be_written_is_one_line_and_replaces_nothing(oneloop, place, tmp_path):
    (tmp_path / "folder").mkdir()
    for flag in ("--html", "--write-split"):
        for target in (tmp_path / "nowhere/file", tmp_path / "folder"):
            code, _, error = oneloop("data", place, flag, target)
            assert (code, error.count("\n")) == (1, 1)
            assert error.startswith(f"cannot write {target}: ")
    assert sorted(os.listdir(tmp_path)) == ["<b>my photos", "folder"]
