"""The code's own rules: lint, format, types, and which way modules depend on each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# Who may import whom inside mvl_dist, lowest first; a module may import from lower layers only.
LAYERS = [
    {"errors"},
    {"files", "half", "machine", "place"},
    {"resample", "surface_metrics"},
    {"journal", "cached_file"},
    {"kernels"},
    {
        *("config", "tasks", "splits", "metrics", "losses", "provenance", "placement", "memory"),
        *(
            "postprocess",
            "launcher",
            "label_resampling",
            "intensity",
            "nifti",
            "parallel",
            "native_grid",
        ),
        *("labelling", "showcase", "compiling", "mlflow_server", "stopping", "score_table"),
    },
    {"store", "statistics", "node_cache", "ended_runs"},
    {"case_reader", "cache_folder"},
    {"models", "ranking", "recipe"},
    {"inference"},
    {"plan", "tracking", "distributed", "augment", "data", "regions", "continuing", "activations"},
    {"progress", "sharing", "watchdog", "optimizing", "reshard", "record", "tracked", "patches"},
    {"batch_buffers", "device_batches", "run_cache"},
    {"loading"},
    {"checkpoint", "evaluation", "data_speed"},
    {"validating"},
    {"engine", "figures", "runs", "exhibit"},
    {"trained", "finding", "ensemble"},
    {"inputs"},
    {"scans", "prediction"},
    {"prediction_files", "model_card", "monai_transforms"},
    {"bundle"},
    {"held_out"},
    {"training"},
    {"launch"},
    {"study"},
    {"report"},
    {
        "train",
        "train_study",
        "evaluate",
        "predict",
        "export",
        "weights",
        "model_table",
        "plan_memory",
        "consolidate",
        "sync",
        "doctor",
    },
    {"cli"},
]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_the_code_is_clean(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_jobs_are_sound_shell() -> None:
    files = [*(REPO / "jobs").glob("*.sbatch"), REPO / "jobs" / "common.sh"]
    command = [Path(sys.executable).with_name("shellcheck"), "--external-sources", *files]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_line_of_the_faults_table_is_a_test() -> None:
    text = (REPO / "docs" / "cluster.md").read_text()
    table = text[text.index("| fault |") :].split("\n\n")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        test = row.split("|")[3].strip().strip("`")
        if test == "the same":
            continue
        file, name = test.split("::")
        assert f"def {name}(" in (REPO / file).read_text(), test


def imports(path: Path) -> set[str]:
    """Modules of the project that a file imports anywhere, as `package.module`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {node.module, *names} if node.module in ("mvl_dist",) else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("mvl_dist", "data_prep")}


def test_dependencies_point_one_way() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for path in (REPO / "mvl_dist").rglob("*.py"):
        parts = path.relative_to(REPO / "mvl_dist").with_suffix("").parts
        if parts == ("__init__",):
            continue
        for name in imports(path):
            words = name.split(".")
            above = len(words) > 1 and level.get(words[1], 0) > level[parts[0]]
            if words[0] == "data_prep" or above:
                wrong.append(f"{path}: imports {name}")
    assert not wrong


def test_every_module_has_its_layer() -> None:
    modules = {path.stem for path in (REPO / "mvl_dist").glob("*.py")} - {"__init__"}
    assert modules <= set().union(*LAYERS)
