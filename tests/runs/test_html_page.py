"""report.html: the report as one file, from the text of report.md, without requests and with everything escaped."""

import base64
import hashlib
import html.parser
import math
import re
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

from inception_jax.runs import class_tables, comparison, comparison_report, html_page, manifest, report, tables

from .made_runs import make_run

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![p](http://example.com/p.png)",
    "[l](javascript:alert(1))", "*bold* _it_ __init__ `code` ~~s~~", "a|b \\| c\\", "&lt;b&gt; &amp; &#60;",
    "# h\n\n- l", "<http://example.com>", "\"><svg onload=alert(1)>", "[r]: http://example.com",
    "``", "snake_case", "]]></style>",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """The elements of a page, each with its attributes and its text; fails where end tags do not match."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    def one(self, tag):
        (element,) = self.all(tag)
        return element


def image(path, width=40):
    cv2.imwrite(str(path), np.zeros((20, width, 3), np.uint8))
    return path


def rendered(text, folder):
    return Page(html_page.render(text, folder))


@pytest.fixture
def run(tmp_path):
    """A run with plots, and with classes and config that a stranger chose."""
    workdir = make_run(tmp_path / "run", ema=(100, 200, 300, 355), data__name=f"folder:{HOSTILE[0]}")
    for name in report.PLOTS:
        image(workdir / f"{name}.png", width=1200)
    lines = ["class,precision,recall,f1,support,predicted"]
    lines += [f'"{name.replace(chr(34), chr(34) * 2)}",0.5,0.25,,1000,2' for name in HOSTILE]
    (workdir / class_tables.PER_CLASS).write_text("\n".join(lines) + "\n")
    return workdir


def test_the_page_has_what_the_report_has_and_asks_for_nothing(run):
    text = report.write(run).read_text()
    page = Page((run / report.PAGE).read_text())
    assert page.one("html")["lang"] == "en" and page.one("title")["text"] == page.one("h1")["text"]
    assert page.one("h1")["text"] == f"inception_v1 on folder:{HOSTILE[0]}"
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[:2] == ["Result", "Learning curves"]  # what is looked for first
    assert [element["text"] for element in page.all("h2")] == titles
    assert [element["href"] for element in page.all("a")][: len(titles)] == [f"#{e['id']}" for e in page.all("h2")]
    assert not page.all("h3", "h4", "link", "iframe", "object", "embed", "base", "form", "svg")
    # Images are in the file, each with its size and a description; nothing else has a source.
    assert len(page.all("img")) == len(report.PLOTS)
    for element in page.all("img"):
        kind, _, data = element["src"].partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) == (run / "first_layer.png").read_bytes()
        assert (element["width"], element["height"]) == ("720", "12") and len(element["alt"]) > 20
    assert all(element["src"].startswith("data:") for element in page.elements if "src" in element)
    assert all(not re.match(r"(https?:)?//", e["href"]) for e in page.elements if "href" in e and e["tag"] != "a")
    # The policy allows no request, and no script but the page's own.
    (policy,) = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.one("script")["text"].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;") and f"script-src 'sha256-{digest}'" in policy
    assert not any(name.startswith("on") for element in page.elements for name in element)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|innerHTML", (run / report.PAGE).read_text())
    # Files do not travel with the page: it names them.
    assert f"[{class_tables.PER_CLASS}]({class_tables.PER_CLASS})" in text
    assert "As files: per_class.csv (in the workdir)." in page.one("main")["text"]
    assert "All fields: config.json (in the workdir)." in page.one("main")["text"]
    assert all(element["href"].startswith("#") for element in page.all("a"))
    # The facts: accuracy with its interval, the time.
    facts = [e for e in page.all("ul") if e.get("class") == "facts"]
    assert "98.61 % top-1 on test, EMA weights: 355 of 360, 95 % interval 96.79–99.41 %" in facts[0]["text"]
    assert "1:21 min wall clock: 37 % compiling" in facts[0]["text"]


def test_texts_stay_texts(run):
    report.write(run)
    page = Page((run / report.PAGE).read_text())
    table = page.all("tbody")[[e["id"] for e in page.all("h2") if "id" in e].index("classes") - 1]
    cells = [line for line in table["text"].split("\n") if line]
    assert cells[::6] == [" ".join(name.split("\n")) if "\n" not in name else "# h  - l" for name in HOSTILE]
    assert len(page.all("script")) == 1 and not page.all("svg")


@pytest.mark.parametrize(
    "text", [*HOSTILE, "\\*", "__x__", "a_b_c", "_x", "![", "](", "1 < 2 & 3", "-", "日本*語*", "`a"]
)
def test_escaped_text_is_shown_as_it_is(tmp_path, text):
    line = " ".join(text.splitlines())
    for markdown in (f"x {tables.escape(text)} y", "\n".join(tables.format_markdown(["a"], [[text]]))):
        page = rendered(f"# t\n\n{markdown}\n", tmp_path)
        shown = page.all("p", "td")[0]["text"].removeprefix("x ").removesuffix(" y")
        assert shown.strip() == line.strip() and not page.all("em", "a", "img", "s")
        assert len(page.all("strong", "code")) == 0
    assert rendered(f"# t\n\n{tables.code(text)} y", tmp_path).all("code")[0]["text"].strip() == line.strip()
    assert tables.escape(tables.escape(text)) == tables.escape(text)


def test_only_images_of_the_folder_are_shown(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "inner").mkdir()
    image(tmp_path / "inner" / "b.png")
    (tmp_path / "empty.png").write_bytes(b"")
    names = ("a.png", "inner/b.png", "/etc/passwd", "http://example.com/a.png", "absent.png", "../a.png", "empty.png")
    page = rendered("# t\n\n" + "\n\n".join(f"![about {name}]({name})" for name in names), tmp_path)
    assert [element["alt"] for element in page.all("img")] == ["about a.png", "about empty.png"]
    assert [element["text"] for element in page.all("em")] == [f"about {name}" for name in names[1:-1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,437", 1437), ("98.61 %", 98.61), ("97.99–99.85 %", 97.99), ("0.0243", 0.0243), ("2.31e-05", 2.31e-05),
        ("-3", -3), ("−3.5", -3.5), ("539/1,800", 539), ("nan", math.nan), ("inf", math.inf), (".5", 0.5),
        ("42 s", 42), ("3:05", 185), ("2:03:45", 7425), ("1 d 02:03", 93780), ("0:08:19.2", 499.2),
        ("", None), ("–", None), ("test", None), ("2 cpu devices", None), ("1.2.3", None), ("(1, 2)", None),
        ("2026-11-27T14:11:00", None), ("e5", None), ("3:05 h", None), ("12 apples", None),
    ],
)  # fmt: skip
def test_the_number_that_a_cell_is_sorted_by(text, value):
    assert html_page.sort_value(text) == pytest.approx(value, nan_ok=True)


def test_columns_of_numbers_have_values_to_sort_by(tmp_path):
    rows = [["a", "9 %", "3", "1,000"], ["b", "–", "x", "999"], ["c", "10 %", "4", "nan"]]
    text = "# t\n\n" + "\n".join(tables.format_markdown(["name", "rate", "mixed", "count"], rows, "lrrr"))
    page = rendered(text, tmp_path)
    assert page.one("table")["data-sortable"] == ""
    values = [cell.get("data-value") for cell in page.all("td")]
    assert values == [None, "9.0", None, "1000.0", None, "", None, "999.0", None, "10.0", None, ""]
    assert "data-sortable" not in rendered(text.rsplit("\n", 1)[0], tmp_path).one("table")  # two rows
    assert page.one("main")["text"].count("999") == 1


def test_a_page_that_cannot_be_written_is_a_warning(run, monkeypatch, capsys):
    report.write(run)
    replace = manifest.replace_text

    def full(path, text):
        if path.suffix == ".html":
            raise manifest.write_error(path, OSError(28, "No space left on device"))
        replace(path, text)

    monkeypatch.setattr(manifest, "replace_text", full)
    (run / "result.json").unlink()
    assert "Not finished" in report.write(run).read_text()
    assert not (run / report.PAGE).exists()  # it would be that of another report
    line = capsys.readouterr().err.strip()
    assert re.fullmatch(r"warning: .*report\.html was not written, report\.md was: .*No space left on device.*", line)
    monkeypatch.setattr(html_page, "render", lambda text, folder: 1 / 0)
    report.write(run)
    assert "division by zero" in capsys.readouterr().err


def test_a_comparison_has_a_page(tmp_path, run):
    other = make_run(tmp_path / "<b>other", right=(1, 2, 3, 4))
    written = comparison_report.write(comparison.compare([run, other]), tmp_path / "out")
    assert [path.name for path in written] == ["comparison.md", "comparison.html", "comparison.png"]
    page = Page(written[1].read_text())
    assert len(page.all("img")) == 1 and page.one("title")["text"] == "Runs side by side"
    assert "<b>other" in page.all("tbody")[0]["text"] and not page.all("b")


def test_a_table_of_results_fits_a_window_of_1200_pixels(tmp_path):
    """Its least width, as a browser lays it out with a wide font: heads break between words, numbers do not break."""
    numbers = ["100.00 %", "99.99–100.00 %", "100.00 %", "0.1234", *["100.00 %"] * 4, "50,000"]
    head = "split|weights|top-1|95 % interval|top-5|loss|balanced|macro F1|calibration error|mean confidence|examples"
    rows = ["|".join((split, weights, *numbers)) for split in ("validation", "test") for weights in ("ema", "raw")]
    page = rendered("\n".join(["# a", "", head, "---|---" + "|---:" * 9, *rows]), tmp_path)
    style, cells = page.one("style")["text"], page.all("th", "td")
    assert "data-sortable" in page.one("table")
    padding = float(re.search(r"^th, td \{ padding: \S+ ([\d.]+)rem;", style, re.M)[1])
    breaks = "nowrap" not in re.search(r"^th \{.*", style, re.M)[0]
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = {
        tag: ImageFont.truetype(fonts / f"DejaVuSans{face}.ttf", 14) for tag, face in (("th", "-Bold"), ("td", ""))
    }
    widths = [0.0] * 11
    for number, cell in enumerate(cells):
        text = cell["text"] + "↕" * (cell["tag"] == "th")
        parts = text.split() if breaks and cell["tag"] == "th" else [text]
        least = max(fonts[cell["tag"]].getlength(part) + 0.35 * 14 * part.endswith("↕") for part in parts)
        widths[number % 11] = max(widths[number % 11], least + 2 * 16 * padding)
    window = min(1200, 16 * float(re.search(r"max-width: ([\d.]+)rem", style)[1]))
    assert sum(widths) <= window - 2 * 1.25 * 16 - 2  # the page's padding, and the border of the box
