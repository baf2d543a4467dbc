"""A result as a table for the terminal, and as a plot."""

from __future__ import annotations

from pathlib import Path

from benchmarks.training_step.rows import Result, Row

COLUMNS = (
    f"{'':34}{'batch':>6}{'ms':>10}{'samples/s':>11}{'GiB':>7}{'TFLOP/s':>9}{'of matmul':>10}"
    f"{'x ours':>8}{'differs':>9}"
)


def table(result: Result) -> str:
    """Whole steps, then parts; `x ours`: time over the time of ours at the same batch size."""
    lines = [f"{key:14}{value}" for key, value in result.about.items()]
    lines += [f"{key:14}{value}" for key, value in result.size.items()]
    lines += [f"{'matmul':14}{result.matmul_tflops:.3g} TFLOP/s in the steps' precision"]
    for whole, title in ((True, "Whole step"), (False, "Parts, forward and backward")):
        groups = dict.fromkeys((r.what, r.batch) for r in result.rows if r.whole == whole)
        lines += ["", title, COLUMNS] if groups else []
        for what, batch in groups:
            rows = result.group(what, batch)
            ours = next((row.ms for row in rows if row.variant == "ours"), 0.0)
            lines += [_line(row, ours, result.matmul_tflops) for row in rows]
    if result.picks:
        lines += ["", "What `auto` picked", *(f"  {pick}" for pick in result.picks)]
    if result.left_out:
        lines += ["", f"No time was left for: {', '.join(result.left_out)}"]
    return "\n".join([*lines, "", f"{result.seconds:.0f} s in all"])


def _line(row: Row, ours: float, matmul: float) -> str:
    start = f"  {row.what + ', ' + row.variant:32}{row.batch:6}"
    if not row.ms:
        return f"{start}  {row.note}"
    peak = f"{row.peak_gib:7.2f}" if row.peak_gib else f"{'-':>7}"
    rate = f"{row.tflops:9.3g}{row.tflops / matmul:10.1%}" if row.tflop else f"{'-':>9}{'-':>10}"
    ratio = f"{row.ms / ours:8.2f}" if ours else f"{'-':>8}"
    differs = f"{row.difference:9.1e}" if row.difference else f"{'-':>9}"
    note = f"  {row.note}" if row.note else ""
    return f"{start}{row.ms:10.3f}{row.samples_per_second:11.4g}{peak}{rate}{ratio}{differs}{note}"


def plot(result: Result, path: Path) -> None:
    """Samples a second over the batch size for each model, and every part's time over ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row.what for row in result.rows if row.whole))
    parts = list(dict.fromkeys(row.what for row in result.rows if not row.whole))
    figure, axes = plt.subplots(1, len(models) + 1, figsize=(5 * len(models) + 7, 5), squeeze=False)
    for axis, model in zip(axes[0], models, strict=False):
        for variant in dict.fromkeys(row.variant for row in result.rows if row.whole):
            points = [r for r in result.rows if (r.what, r.variant) == (model, variant) and r.ms]
            points.sort(key=lambda row: row.batch)
            sizes, rates = [r.batch for r in points], [r.samples_per_second for r in points]
            if points:
                axis.plot(sizes, rates, marker="o", label=variant)
        axis.set(title=f"{model}, whole step", xlabel="batch size", ylabel="samples/s")
        if axis.lines:
            axis.set(xscale="log", yscale="log")
            axis.legend()
    last = axes[0, -1]
    for number, part in enumerate(parts):
        rows = [row for row in result.rows if row.what == part and row.ms]
        ours = next((row.ms for row in rows if row.variant == "ours"), 0.0)
        for row in rows if ours else ():
            last.plot(row.ms / ours, number, "o" if row.variant == "ours" else "x", color="C0")
            last.annotate(
                row.variant,
                (row.ms / ours, number),
                fontsize=7,
                xytext=(2, 4),
                textcoords="offset points",
            )
    last.axvline(1.0, color="grey", linewidth=0.5)
    last.set_yticks(range(len(parts)), parts)
    last.set(title="parts", xlabel="time / ours (log)", xscale="log")
    figure.suptitle(f"{result.about['device']}, {result.about['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
