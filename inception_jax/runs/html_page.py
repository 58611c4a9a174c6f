"""Writes a report as Markdown and, rendered from that text, as one HTML file with its images, which needs no network.

`report_page.html` is the page's frame: its style, its script, and the places of title and content. The content is the
rendered Markdown. HTML in that is shown as text, and the page's content security policy allows no request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import itertools
import math
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax.runs import manifest, plot_style
from inception_jax.runs.tables import UNKNOWN

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRAME = "report_page.html"
_LEAST_SORTABLE = 3  # rows
_WIDE = 500  # CSS pixels; a wider image keeps a readable size on a phone, and scrolls in its box
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBER = re.compile(r"([-+−]?[\d,]*\.?\d+(?:e[-+]?\d+)?|[-+−]?inf|nan)(?: (?:%|s))?(?:[–/][\d,.]+(?: %)?)?")
_DURATION = re.compile(r"(?:(?P<days>\d+) d (?=\d+:\d\d$))?(\d+):(\d\d)(?::(\d\d(?:\.\d+)?))?")


def page_path(path: Path) -> Path:
    """Returns the path of the HTML file beside a Markdown file."""
    return path.with_suffix(".html")


def write_report(path: Path, text: str) -> None:
    """Writes a report: Markdown, and beside it the same as one HTML file; each is replaced atomically.

    Where the HTML file cannot be made or written, that is a warning on stderr, and an older one is removed: it would be
    another report.

    Args:
      path: of the Markdown file; the images that it shows are beside it.
      text: Markdown.

    Raises:
      UserError: the Markdown file cannot be written.
    """
    manifest.replace_text(path, text)
    page = page_path(path)
    try:
        manifest.replace_text(page, render(text, path.parent))
    except Exception as error:  # a run that has finished must not fail here, whatever is wrong with a page
        print(f"warning: {page} was not written, {path.name} was: {error}", file=sys.stderr)
        try:
            page.unlink(missing_ok=True)
        except OSError as problem:
            print(f"warning: {page} is of an earlier report: {problem.strerror}", file=sys.stderr)


def render(text: str, folder: Path) -> str:
    """Renders a report as a page.

    Args:
      text: Markdown, which begins with a heading and a paragraph. A list right after these has the main facts, each
        with its value in bold: they become tiles.
      folder: of the images.

    Returns:
      HTML that holds the folder's PNG files; an image from anywhere else is replaced by its description.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    title, sections = _name_headings(tokens)
    _mark_facts(tokens)
    tokens = list(_page_tokens(tokens, title, folder))
    first = next((i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"), None)
    if first is not None and len(sections) > 1:
        links = "\n".join(f'<a href="#{name}">{html.escape(section)}</a>' for name, section in sections.items())
        tokens.insert(first, _raw(f'<nav aria-label="Sections">\n{links}\n</nav>\n'))
    return _fill_frame(title, markdown.renderer.render(tokens, markdown.options, {}))


def _name_headings(tokens: Sequence[Token]) -> tuple[str, dict[str, str]]:
    """Gives each section an id. Returns (title of the page, {id: title of the section})."""
    title, sections = "Report", dict[str, str]()
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            title = _plain_text(content)
        elif token.type == "heading_open" and token.tag == "h2":
            words = "-".join(re.findall(r"\w+", _plain_text(content).lower())) or "section"
            name = words if words not in sections else f"{words}-{len(sections)}"
            sections[name] = _plain_text(content)
            token.attrSet("id", name)
    return title, sections


def _mark_facts(tokens: Sequence[Token]) -> None:
    """Marks the list of facts: the first one, if it comes right after the heading and a paragraph."""
    blocks = [token for token in tokens if token.level == 0 and token.nesting >= 0 and token.type != "inline"]
    if [token.type for token in blocks[:3]] == ["heading_open", "paragraph_open", "bullet_list_open"]:
        blocks[2].attrSet("class", "facts")


def _page_tokens(tokens: Sequence[Token], title: str, folder: Path) -> Iterator[Token]:
    """Yields the tokens with tables, code and images in boxes that scroll by themselves.

    A link to another file becomes text: the page may have been sent without that file.
    """
    section = title
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            section = _plain_text(tokens[index + 1])
        if token.type == "fence":
            yield _raw(f"{_box('pre', section)}<code>{html.escape(token.content)}</code></pre>\n")
        elif token.type == "table_open":
            end = next(i for i in range(index, len(tokens)) if tokens[i].type == "table_close")
            _add_sort_values(tokens[index:end])
            yield from (_raw(_box("div", section)), token)
        elif token.type == "table_close":
            yield from (token, _raw("</div>\n"))
        else:
            for place, child in enumerate(token.children or ()):
                if child.type == "image":
                    token.children[place] = _raw(_image(child, folder), "html_inline")  # type: ignore[index]
            _unlink_files(token)
            yield token


def _unlink_files(token: Token) -> None:
    """Replaces links to files of the report's folder by their texts, and says where the files are."""
    local = [False]
    children: list[Token] = []
    for child in token.children or ():
        if child.type == "link_open":
            local.append(not re.match(r"#|[a-z][a-z0-9+.-]*:", str(child.attrs.get("href", ""))))
        if child.type not in ("link_open", "link_close") or not local[-1]:
            children.append(child)
        if child.type == "link_close" and local.pop():
            children.append(_raw(" (in the workdir)", "html_inline"))
    if token.children is not None:
        token.children = children


def _box(tag: str, label: str) -> str:
    """The start tag of a box that scrolls, also by the keyboard."""
    return f'<{tag} class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0">'


def _add_sort_values(table: Sequence[Token]) -> None:
    """Makes a table sortable where it has rows enough, and gives the cells of columns of numbers their numbers."""
    rows: list[list[tuple[Token, str]]] = []
    for token, content in itertools.pairwise(table):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append((token, _plain_text(content)))
    head, *body = rows
    if len(body) < _LEAST_SORTABLE or not any(text for _, text in head):
        return
    table[0].attrSet("data-sortable", "")
    for column in zip(*body, strict=True):
        values = [sort_value(text) for _, text in column]
        texts = [text for (_, text), value in zip(column, values, strict=True) if value is None]
        if len(texts) < len(values) and all(text.strip() in ("", UNKNOWN) for text in texts):
            for (token, _), value in zip(column, values, strict=True):
                token.attrSet("data-value", "" if value is None or math.isnan(value) else repr(value))


def sort_value(text: str) -> float | None:
    """Returns the number that a cell is sorted by: of `1,437`, `98.61 %`, `97.99–99.85 %`, `0:08:19.2`, `42 s`.

    Returns:
      None for a text. Times are in seconds; `3:05` is minutes, as `formatting.format_duration` has it.
    """
    text = text.strip()
    if match := _DURATION.fullmatch(text):
        days, first, second, third = match.groups()
        if days is not None:
            return 86_400.0 * int(days) + 3_600 * int(first) + 60 * int(second)
        parts = (int(first), int(second), float(third)) if third else (0, int(first), float(second))
        return 3_600.0 * parts[0] + 60 * parts[1] + parts[2]
    if match := _NUMBER.fullmatch(text):
        return float(match[1].replace(",", "").replace("−", "-"))
    return None


def _image(token: Token, folder: Path) -> str:
    """Returns an image of the folder as an element that holds it; the description of any other."""
    source, alt = str(token.attrs.get("src", "")), html.escape(_plain_text(token))
    path = folder / source
    if Path(source).name != source or path.suffix != ".png" or not path.is_file():
        return f"<em>{alt}</em>"
    content = path.read_bytes()
    size, wide = "", ""
    if content.startswith(_PNG) and len(content) >= 24:  # at the size that the plots were designed for
        width, height = (round(pixels * 96 / plot_style.DPI) for pixels in struct.unpack(">II", content[16:24]))
        size, wide = f' width="{width}" height="{height}"', " wide" * (width > _WIDE)
    data = base64.b64encode(content).decode()
    return (
        f'<span class="scroll figure{wide}" role="region" aria-label="{alt}" tabindex="0">'
        f'<img src="data:image/png;base64,{data}"{size} alt="{alt}"></span>'
    )


def _plain_text(token: Token) -> str:
    """The text of an inline token, without markup."""
    if token.children is None:
        return token.content
    return "".join(" " if child.type == "softbreak" else _plain_text(child) for child in token.children)


def _raw(content: str, kind: str = "html_block") -> Token:
    from markdown_it.token import Token

    return Token(kind, "", 0, content=content)


def _fill_frame(title: str, body: str) -> str:
    frame = importlib.resources.files(__package__).joinpath(_FRAME).read_text(encoding="utf-8")
    script = frame.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    values = {"title": html.escape(title), "policy": html.escape(policy, quote=False), "body": body}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], frame)
