"""A result as tables for the terminal."""

from __future__ import annotations

from benchmarks.data_path.registry import COMPETITORS
from benchmarks.data_path.rows import COLD, CROPS, LATER, LIMITED, WARM, Goal, Result, Row

TITLES = {
    COLD: "First epoch, from the disk",
    LIMITED: "First epoch, from the disk at a limited rate",
    WARM: "First epoch, files in the page cache",
    LATER: "Later epochs",
    CROPS: "Random crops at the scan's resolution, in one process, files in the page cache",
}
COLUMNS = f"  {'':26}{'samples/s':>10}{'lowest..highest':>20}{'CPU ms':>9}{'disk MB':>9}"


def table(result: Result) -> str:
    """Goals first, then every measurement."""
    lines = [f"{key:14}{value}" for key, value in result.about.items()]
    lines += [f"{key:14}{value}" for key, value in result.data.items()]
    lines += [f"{key:28}{value:.4g}" for key, value in result.limits.items()]
    lines += [f"note: {note}" for note in result.notes]
    lines += ["", "Goals: samples/s over a peer's in the same round, median (lowest..highest)"]
    for goal in result.goals:
        lines += _goal(result, goal)
    lines += ["", f"  {'':26}{'MB on disk':>12}{'s to make':>11}  a sample"]
    for each in COMPETITORS:
        size, made = result.disk_bytes.get(each.name, 0), result.build_s.get(each.name, 0)
        lines.append(f"  {each.name:26}{size / 1e6:12.2f}{made:11.3f}  {each.says}")
    for state, title in TITLES.items():
        for workers in dict.fromkeys(row.workers for row in result.rows if row.state == state):
            rows = [r for r in result.rows if (r.state, r.workers) == (state, workers) and r.used]
            many = "" if state == CROPS else f", {_workers(workers)}"
            lines += ["", f"{title}{many}", COLUMNS] if rows else []
            lines += map(_line, rows)
    return "\n".join([*lines, "", f"{result.seconds:.0f} s in all"])


def _goal(result: Result, goal: Goal) -> list[str]:
    found = result.ratios_of(goal)
    if not found:
        return [f"  {goal.key:32} goal {goal.goal:g}: not measured ({goal.says})"]
    lines = []
    for ratio in found:
        many = "" if goal.ours[1] == CROPS else _workers(ratio.workers)
        met = "met" if ratio.median >= goal.goal else "NOT met"
        span = f"({ratio.low:.2f}..{ratio.high:.2f})"
        lines.append(
            f"  {goal.key:32}{many:>10} {ratio.median:8.2f} {span:18} goal {goal.goal:g}: {met}"
        )
    return lines


def _workers(count: int) -> str:
    return f"{count or 'no'} worker{'s' * (count != 1)}"


def _line(row: Row) -> str:
    low, high = row.span()
    span = f"{low:.4g}..{high:.4g}"
    rate, cpu, disk = (
        row.median(of) for of in (lambda u: u.rate, lambda u: u.cpu_ms, lambda u: u.disk_mb)
    )
    return f"  {row.name:26}{rate:10.4g}{span:>20}{cpu:9.2f}{disk:9.2f}"
