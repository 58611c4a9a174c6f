"""Formats tables as aligned text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len

from inception_jax.runs.manifest import ABSENT

# What begins markup in the middle of a line. An underscore inside a word begins none.
_MARKUP = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[*<`~]|\](?=[(:\[])|!(?=\[)|&(?=[#\w]+;)|(?<![^\W_])_|_(?![^\W_])")
GAP = "  "
UNKNOWN = "–"
"""The cell for a value that is unknown or absent."""


class Markdown(str):
    """Text that is Markdown already; `format_markdown` escapes every other cell."""


def escape(text: Any) -> Markdown:
    """Escapes a text, of any origin, so that Markdown and HTML show it as it is, on one line."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_MARKUP.sub(r"\\\g<0>", " ".join(str(text).splitlines())))


def code(text: Any) -> Markdown:
    """Formats a text as a code span."""
    line = " ".join(str(text).splitlines())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{space}{line}{space}{ticks}")


def format_table(rows: Sequence[Sequence[Any]], align: str = "") -> str:
    """Formats a table as aligned text.

    Args:
      rows: cells, the same number in each row; `str` converts them.
      align: "l" or "r" per column, for cells aligned left or right; default: all left.

    Returns:
      One line per row.
    """
    if not rows:
        return ""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    sides = align or "l" * len(widths)
    return "\n".join(
        GAP.join(_padded(*place) for place in zip(row, widths, sides, strict=True)).rstrip() for row in cells
    )


def format_markdown(head: Sequence[Any], rows: Sequence[Sequence[Any]], align: str = "") -> Iterator[str]:
    """Yields the lines of a Markdown table; none where there are no rows.

    Args:
      head: names of the columns; escaped as the cells are.
      rows: cells; what is not `Markdown` is escaped.
      align: "l" or "r" per column.
    """
    if rows:
        yield _markdown_line(head)
        yield "|" + "|".join("---:" if side == "r" else "---" for side in align or "l" * len(head)) + "|"
        for row in rows:
            yield _markdown_line(row)


def section(title: str, lines: Iterable[str]) -> str:
    """Formats a section of a Markdown document; "" where it has no lines."""
    content = "\n".join(lines)
    return f"## {title}\n\n{content}" if content else ""


def split_table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, align: str = "") -> Iterator[str]:
    """Splits a table that is too wide into several aligned ones that fit; each repeats the first column.

    Args:
      head: names of the columns.
      rows: cells.
      width: width of the terminal in columns; each part has at least one column beside the first, however wide.
      align: as in `format_table`.
    """
    table = [list(head), *map(list, rows)]
    widths = [max(cell_len(row[i]) for row in table) for i in range(len(head))]
    first, align = 1, align or "l" * len(head)
    while first < len(head):
        end, used = first + 1, widths[0] + len(GAP) + widths[first]
        while end < len(head) and used + len(GAP) + widths[end] <= width:
            used += len(GAP) + widths[end]
            end += 1
        yield format_table([[row[0], *row[first:end]] for row in table], align[0] + align[first:end])
        first = end


def format_values(values: Sequence[Any]) -> list[str]:
    """Formats the values of one field; numbers with six digits, or with all where six do not distinguish them."""
    short = [format_value(value, digits=6) for value in values]
    exact = [format_value(value) for value in values]
    return short if len(set(short)) == len(set(exact)) else exact


def format_value(value: Any, digits: int | None = None) -> str:
    """Formats a config value: tuples in parentheses, None as "unset"; floats with so many digits, or with all."""
    if value is None or value == ABSENT:
        return "unset" if value is None else UNKNOWN
    if isinstance(value, list | tuple):
        items = [format_value(item, digits) for item in value]
        return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
    if isinstance(value, float) and digits:
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else repr(value)


def _padded(cell: str, width: int, side: str) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if side == "r" else cell + space


def _markdown_line(row: Sequence[Any]) -> str:
    return "| " + " | ".join(escape(cell).replace("|", "\\|") for cell in row) + " |"
