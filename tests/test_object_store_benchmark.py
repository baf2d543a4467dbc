"""`benchmarks/object_store.py` runs to its end, and its rows say what they should."""

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def test_epochs_and_paces_of_both_places_are_printed() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.object_store", "--parts", "epochs", "pace"),
            *("--server", "moto", "--latency-ms", "5", "--grid", "16", "--cases", "12"),
            *("--batch", "2", "--workers", "0", "1", "--rounds", "2"),
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "epoch" in line[:15]]
    assert [(row[0], row[2]) for row in rows] == 2 * [
        (kind, place) for kind in ("first", "later") for place in ("folder", "s3")
    ]
    asked = [float(found) for found in re.findall(r"([\d.]+) requests a sample", done.stdout)]
    # Image and label of each case once, and once what these are; then they lie in the cache.
    assert asked == 2 * [0, round((2 * 12 + 2) / 12, 1), 0, 0]
    assert "samples/s at which at most 5% is waited: folder" in done.stdout
