"""The jobs of jobs/ under a real Slurm: a run on two nodes, a study through every kind of loss."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from data_prep.phantom import PHANTOM_TASKS, make_phantom_task
from mvl_dist.store import read_manifest
from mvl_dist.study.lease import holder
from tests.debian import NotInstalledError
from tests.servers import free_port
from tests.system.launching import REPO, curve, curve_of, environment, launch, tags
from tests.system.slurm_cluster import Cluster, cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TASK = "Task93_PhantomLesion"
EPOCHS = 12
RUN = ("--preset", "smoke", "--task", "93", "--grid", "16", "16", "16", "--target", "binary")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
            yield running
    except NotInstalledError as reason:
        pytest.skip(f"no Slurm: {reason}")


@pytest.fixture(scope="module")
def site(slurm: Cluster) -> Path:
    """The site's settings, and phantom data to convert; everything lies in its folder."""
    folder = slurm.folder.parent
    file = folder / "site.env"
    file.write_text(
        f"""
        export MVL_VENV={Path(sys.executable).parent.parent}
        export MSD_ROOT={folder}/msd MVL_STORE={folder}/store MVL_OUTPUT={folder}/runs
        export MVL_LAUNCHER=cpu1 MVL_SLOTS=2 MVL_MLFLOW_PORT={free_port()}
        export MVL_MLFLOW_DATABASE=sqlite:///{folder}/runs/mlflow.db
        export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu MVL_LEASE_SECONDS=20
        """
    )
    (task,) = (task for task in PHANTOM_TASKS if task.name == TASK)
    make_phantom_task(folder / "msd", task, cases=8, seed=0)
    return file


@pytest.fixture(scope="module")
def store(slurm: Cluster, site: Path) -> Path:
    """The store that jobs/convert.sbatch made."""
    job = submit(slurm, site, "convert.sbatch", "--grid", "16", "16", "16")
    wait_until(lambda: slurm.states(job)[job] == "COMPLETED", slurm, job)
    return site.parent / "store"


def submit(slurm: Cluster, site: Path, job: str, *arguments: str, flags: str = "") -> str:
    """`. site.env; sbatch jobs/JOB`, as a user does; returns the job's number."""
    output = f"--output={site.parent}/%x-%j.out"
    line = f'. {site} && sbatch --parsable {output} {flags} jobs/{job} "$@"'
    environ = environment(SLURM_CONF=str(slurm.configuration), MVL_SITE=str(site))
    done = subprocess.run(
        ["bash", "-c", line, "bash", *arguments],
        cwd=REPO,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def written(site: Path) -> str:
    """What the jobs wrote."""
    return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in site.parent.glob("*.out"))


def wait_until(condition: Callable[[], bool], slurm: Cluster, *jobs: str, limit: int = 240) -> None:
    """Wait; a job that has failed meanwhile is an error."""
    deadline = time.monotonic() + limit
    while not condition():
        states = {id: state for job in jobs for id, state in slurm.states(job).items()}
        bad = {"FAILED", "NODE_FAIL", "OUT_OF_MEMORY"} & set(states.values())
        text = written(slurm.folder.parent / "site.env")
        assert not bad, f"{states}\n{text}"
        assert time.monotonic() < deadline, f"{states}\n{text}\n{slurm.log()}"
        time.sleep(0.3)


# ------------------------------------------------------------------------------------- one run


def test_a_run_on_two_nodes_is_saved_at_slurms_warning_queued_again_and_has_one_nodes_curve(
    slurm: Cluster, site: Path, store: Path
) -> None:
    epochs = ("--epochs", "30")
    output = site.parent / "two-nodes"
    job = submit(
        *(slurm, site, "train.sbatch", *RUN, *epochs, "--model", "vit_baseline"),
        *("--output", str(output)),
        flags="--nodes=2 --gpus-per-node=2",
    )
    wait_until(lambda: bool(list(output.glob("*/*/checkpoints/last.json"))), slurm, job)
    # What Slurm sends by itself at --signal=B:USR1@120.
    assert slurm.run(["scancel", "--signal=USR1", "--batch", job]).returncode == 0
    wait_until(lambda: slurm.states(job)[job] in ("PENDING", "REQUEUED"), slurm)
    assert "SIGUSR1: saved at step" in written(site)
    start_now(slurm, job)
    wait_until(lambda: slurm.states(job)[job] == "COMPLETED", slurm, job)
    set_by_run = tags(output)
    assert (set_by_run["nodes"], set_by_run["world_size"]) == ("2", "2")
    assert set_by_run["slurm_job"] == job
    one = site.parent / "one-node"
    done = launch(
        [*RUN, *epochs, *("--model", "vit_baseline", "--store", str(store), "--output", str(one))]
    )
    assert done.code == 0, done.errors
    assert len(curve(one)) == 30 * 2
    assert curve(output) == curve(one)
    assert curve(output, "val_dice") == curve(one, "val_dice")


def start_now(slurm: Cluster, job: str) -> None:
    """Slurm lets a queued-again job wait for two minutes; a test need not.

    But slurmd refuses a job of the second in which it revoked that job's last credential.
    """
    time.sleep(4)
    slurm.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])


# ----------------------------------------------------------------------------------- the study


@pytest.fixture
def study(site: Path) -> Path:
    """Twelve runs."""
    file = site.parent / "study.yaml"
    settings = {
        "name": "twelve",
        "preset": "smoke",
        "set": {
            "data": {"grid": [16, 16, 16], "target": "binary"},
            "model": {"depth": 2},
            "optim": {"epochs": EPOCHS, "batch_size": 1},
        },
        "tasks": [TASK],
        "folds": [0, 1],
        "seeds": [0, 1, 2, 3, 4, 5],
        "tables": {"only": {"models": ["vit_baseline"]}},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def of_job(job: str, word: str) -> list[psutil.Process]:
    """Processes of a Slurm job whose command line has a word."""
    found = []
    for process in psutil.process_iter():
        try:
            if word in " ".join(process.cmdline()) and process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks(job: str) -> list[psutil.Process]:
    launched = of_job(job, "train_study.py")
    return [p for p in launched if "accelerate.commands.launch" not in p.cmdline()]


def finished(uri: str) -> Counter[str]:
    """Runs that are FINISHED, by their key."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("twelve")
    if experiment is None:
        return Counter()
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    return Counter(run.data.tags["key"] for run in runs)


def test_a_study_over_two_nodes_outlives_a_rank_a_job_a_requeue_and_the_mlflow_server(
    slurm: Cluster, site: Path, store: Path, study: Path
) -> None:
    runs = site.parent / "runs"
    server = submit(slurm, site, "mlflow-server.sbatch", flags="--partition=service")
    address = runs / "mlflow-server.uri"
    wait_until(address.exists, slurm, server)
    uri = address.read_text().strip()
    job = submit(slurm, site, "study.sbatch", str(study), flags="--array=0-1 --gpus-per-node=2")
    # Until they run, an array's tasks share one number.
    wait_until(lambda: len(set(ids(slurm, job).values())) == 2, slurm, job)
    first, second = (ids(slurm, job)[f"{job}_{task}"] for task in (0, 1))
    to_requeue = f"{job}_1"

    wait_until(lambda: len(saved(runs)) >= 2 and len(ranks(first)) == 2, slurm, job)
    ranks(first)[0].kill()  # as the kernel does when memory runs out

    wait_until(lambda: sum(finished(uri).values()) >= 2, slurm, job)
    for process in of_job(server, "mlflow"):
        process.kill()  # its job starts it again

    wait_until(lambda: len(ranks(second)) == 2, slurm, job)
    slurm.run(["scancel", "--signal=USR1", "--batch", to_requeue])
    wait_until(lambda: slurm.states(job)[to_requeue] in ("PENDING", "REQUEUED"), slurm)
    assert slurm.states(job)[f"{job}_0"] == "RUNNING"
    start_now(slurm, to_requeue)
    wait_until(lambda: bool(ranks(second)), slurm, job)

    for process in of_job(first, ""):
        process.kill()  # a whole job at once
    wait_until(lambda: slurm.states(job)[to_requeue] == "COMPLETED", slurm)

    if len(finished(uri)) < 12:  # what the last task could not see is the next job's
        later = submit(
            slurm, site, "study.sbatch", str(study), flags="--array=0-1 --gpus-per-node=2"
        )
        wait_until(lambda: set(slurm.states(later).values()) == {"COMPLETED"}, slurm, later)
    assert sorted(finished(uri).values()) == [1] * 12
    # A rank that is killed may leave a lease behind, which holds nothing.
    keys = {path.stem for path in (runs / "claims").iterdir()}
    assert [holder(runs, key) for key in keys] == [""] * len(keys)

    undisturbed = site.parent / "undisturbed"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mvl_dist.cli", "study", "run", str(study)),
            *("--launcher", "cpu1", "--store", str(store), "--output", str(undisturbed)),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    compare(runs, undisturbed, uri)
    made = submit(
        *(slurm, site, "report.sbatch", "--experiment", "twelve", "--study", str(study)),
        flags="--mem=0",
    )
    wait_until(lambda: slurm.states(made)[made] == "COMPLETED", slurm, made)
    assert "12 of 12" in written(site)
    assert "MVL-Dist report: twelve" in (runs / "report" / "index.html").read_text()
    slurm.run(["scancel", server])


def ids(slurm: Cluster, job: str) -> dict[str, str]:
    """Array task -> the number that Slurm runs it under."""
    shown = slurm.call("squeue", "-h", "-r", "-j", job, "-o", "%i %A")
    return dict(line.split() for line in shown.splitlines())


def saved(runs: Path) -> list[Path]:
    return list(runs.glob("*/*/checkpoints/last.json"))


def compare(runs: Path, undisturbed: Path, uri: str) -> None:
    """Every curve of the disturbed study, in journal and MLflow, is the undisturbed one's."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("twelve")
    assert experiment is not None
    entries = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    in_mlflow = {run.info.run_name: run.info.run_id for run in entries}
    folders = sorted(path.parent for path in undisturbed.glob("*/*/config.yaml"))
    assert len(folders) == 12
    steps = 0
    for folder in folders:
        same = runs / folder.relative_to(undisturbed)
        for key in ("train_loss", "grad_norm", "val_dice", "val_loss", "test_dice/foreground"):
            expected = curve_of(folder, key)
            assert expected
            assert curve_of(same, key) == expected
            history = client.get_metric_history(in_mlflow[folder.name], key)
            assert {point.step: point.value for point in history} == expected
            steps += len(expected)
    cases = len(read_manifest(site_store(runs), TASK).cases)
    assert steps > 12 * 2 * EPOCHS * (cases // 2)


def site_store(runs: Path) -> Path:
    return runs.parent / "store"
