"""A table of the report, and the same table as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mvl_dist.report.stats import Cell

Value = str | Cell


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files and of its place in the page, e.g. `table2`.
        caption: conventions and marks, printed under it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    caption: str = ""

    @property
    def has_paper(self) -> bool:
        """Whether the paper's numbers stand in it."""
        return any(isinstance(value, Cell) and value.paper for row in self.rows for value in row)


CELL_FIELDS = ("", " SD", " n", " runs", " runs expected", " marks", " paper")


def to_csv(table: Table) -> str:
    """One line a row; a number becomes seven columns: mean, SD, n, runs, expected, marks, paper."""
    numeric = [
        any(isinstance(row[index], Cell) for row in table.rows)
        for index in range(len(table.columns))
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = []
    for column, is_number in zip(table.columns, numeric, strict=True):
        heads += [f"{column}{field}" for field in CELL_FIELDS] if is_number else [column]
    writer.writerow(heads)
    for row in table.rows:
        line: list[object] = []
        for value, is_number in zip(row, numeric, strict=True):
            if isinstance(value, Cell):
                line += [
                    *(_number(value.mean), _number(value.sd), value.n or ""),
                    *("" if count is None else count for count in (value.runs, value.expected)),
                    *(value.marks, value.paper),
                ]
            else:
                line += [value, *[""] * (len(CELL_FIELDS) - 1)] if is_number else [value]
        writer.writerow(line)
    return text.getvalue()


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def to_latex(table: Table) -> str:
    """A booktabs table; the paper's number stands under ours in parentheses."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(table.title)}. {latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(latex(column) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        lines.append(" & ".join(latex(_shown(value)) for value in row) + r" \\")
        papers = [value.paper if isinstance(value, Cell) else "" for value in row]
        if any(papers):
            lines.append(" & ".join(latex(f"({p})" if p else "") for p in papers) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return value
    partial = value.expected is not None and value.runs != value.expected
    return value.text + (f" [{value.runs}/{value.expected}]" if partial else "")


_SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
    "<": r"$<$",
    ">": r"$>$",
    "³": r"$^3$",
    "τ": r"$\tau$",
}


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return re.sub(r"[&%$#_{}\\~^±†×–−≥<>³τ]", lambda match: _SPECIAL[match[0]], text)


def words(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
