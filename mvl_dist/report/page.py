"""The page: one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvl_dist.report.claim import Verdict
from mvl_dist.report.drawing import Figure
from mvl_dist.report.layout import Table
from mvl_dist.report.paper import ASSETS
from mvl_dist.report.stats import Cell


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    Attributes:
        head: facts above everything: experiment, studies, counts.
        conclusion: the claim's sentence.
        cases: of the 3D viewer, see `viewer.viewer_cases`.
        notes: what was left out, and why.
    """

    title: str
    head: Mapping[str, str]
    conclusion: str
    verdicts: Sequence[Verdict]
    rule: str
    effects: Table
    paper_tables: Sequence[Table]
    extra_tables: Sequence[Table]
    figures: Sequence[Figure]
    cases: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    def figures_like(self, *prefixes: str) -> list[Figure]:
        """Figures whose names begin so, in the order given."""
        return [f for prefix in prefixes for f in self.figures if f.name.startswith(prefix)]


def data_uri(figure: Figure) -> str:
    """A figure as the source of an `img`: SVG for charts, PNG for pictures."""
    kind, data = ("svg+xml", figure.svg) if figure.vector else ("png", figure.png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def render(content: Content) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.tests["cell"] = lambda value: isinstance(value, Cell)
    # A closing tag inside a script would end it.
    cases = json.dumps(list(content.cases)).replace("</", "<\\/")
    library = (ASSETS / "niivue.umd.js").read_text() if content.cases else ""
    return environment.get_template("page.html.j2").render(
        content=content,
        style=(ASSETS / "style.css").read_text(),
        viewer=(ASSETS / "viewer.js").read_text(),
        library=library.replace("</script", "<\\/script"),
        cases=cases,
    )
