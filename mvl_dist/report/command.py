"""`mvl report --experiment NAME --out DIR`: tables, figures and verdict, out of MLflow."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from mvl_dist.config import RunConfig
from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, write_bytes_atomically
from mvl_dist.study.selection import PAPER
from mvl_dist.tracking import default_uri

PAGE = "index.html"


@dataclass(frozen=True)
class ReportArguments:
    """Make a report of a study, finished or not, from what MLflow holds of its runs.

    Writes DIR/index.html, which opens from the file, DIR/tables (CSV, LaTeX) and DIR/figures (PNG,
    SVG).
    """

    experiment: tuple[str, ...]
    """MLflow experiments; a study's is its name."""
    out: Path
    """Folder to write; files of an earlier report are replaced."""
    study: tuple[Path, ...] = (PAPER,)
    """Study files that say which runs are expected where (default: the paper's)."""
    output: Path = field(default_factory=lambda: RunConfig().output)
    """Folder of the default MLflow database (default: $MVL_OUTPUT, else ./runs)."""
    arrange: bool = False
    """Also put a parent run a task into MLflow: which run is best, and its worst cases."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl report`."""
    arguments = tyro.cli(
        ReportArguments, args=list(argv), prog="mvl report", config=(tyro.conf.FlagCreatePairsOff,)
    )
    check_writable(arguments.out)
    from mvl_dist.report.build import build  # matplotlib, and torch for counting FLOP

    uri = default_uri(arguments.output)
    with tempfile.TemporaryDirectory(prefix="mvl-report-") as folder:
        built = build(uri, arguments.experiment, arguments.study, Path(folder))
        write(arguments.out, built.files)
        print(f"{built.summary}\n{built.conclusion}\n{arguments.out / PAGE}")
        if arguments.arrange:
            from mvl_dist.report.arrange import arrange

            for line in arrange(built.results, arguments.experiment[0], arguments.out / PAGE):
                print(line)
    return 0


def check_writable(out: Path) -> None:
    """Refuse a folder that cannot be written before anything slow starts; makes none.

    Raises:
        UserError: it cannot be made, or takes no file.
    """
    try:
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f"{PARTIAL}{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
        with contextlib.suppress(OSError):  # another report is written there
            for folder in missing:
                folder.rmdir()
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written ({error.strerror}): choose another folder"
        ) from error


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, each in one step, the page last."""
    for name in sorted(files, key=lambda name: name == PAGE):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, files[name])
