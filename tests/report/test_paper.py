"""The paper's numbers, against its text where that is at hand and against its own counts."""

import re
from pathlib import Path

import pytest

from mvl_dist.report import paper

REPO = Path(__file__).resolve().parents[2]
TEXT = REPO.parent / "shared" / "paper" / "medvisionllama.md"


def test_table_2_has_the_41_stars_that_its_caption_counts() -> None:
    metrics = ("Dice", "Jaccard", "NSD", "HD95", "Specificity", "Sensitivity")
    cells = [paper.table2(m, "MedVisionLlama", t) for m in metrics for t in paper.TASK_NUMBERS]
    assert len(cells) == 60
    assert sum("*" in cell for cell in cells) == 41


def test_tables_agree_among_each_other() -> None:
    # Tables 2 and 4 are of the same runs, so are Tables 3, 5 and 6 (rank 8).
    means = [cell.split()[0] for cell in paper.row("table4", "MedVisionLlama")[3:]]
    again = [paper.table2("Dice", "MedVisionLlama", t).split()[0] for t in paper.TASK_NUMBERS]
    assert means == [mean.rstrip("*") for mean in again]
    average = paper.row("table3", "MedVisionLlama")
    assert paper.row("table5", "MedVisionLlama")[2] == average[0]
    assert paper.row("table6", "LoRA rank 8")[1:] == average


@pytest.mark.parametrize("metric", ["Dice", "Jaccard", "NSD", "HD95", "Specificity", "Sensitivity"])
def test_table_2_is_the_text_of_the_paper(metric: str) -> None:
    if not TEXT.exists():
        pytest.skip(f"no {TEXT}")
    lines = TEXT.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"{metric}\t"))
    printed = re.sub(r"</?b>|\*", "", lines[start]).split()[1:]
    spread = re.sub(r"</?b>", "", lines[start + 1]).replace("±", " ± ").split()
    spread = [word for word in spread if word != "±"]
    models = ("ViT-Baseline", "MedVisionLlama")
    ours = [paper.table2(metric, m, t) for t in paper.TASK_NUMBERS for m in models]
    assert [cell.split(" ±")[0].rstrip("*") for cell in ours] == printed
    assert [cell.split(" ±")[1] for cell in ours] == spread
