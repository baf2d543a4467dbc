"""Resampling by torch against NumPy's and SciPy's, bit for bit: on torch's CPU, and on a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import convert, gpu
from mvl_dist.errors import UserError
from mvl_dist.intensity import Scale
from mvl_dist.resample import resample_image
from tests.data_prep.tiny import convert_tiny, make_tiny

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
everywhere = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu])]
)
AS_IT_IS = Scale(0.0, 1.0)
MRI = Scale(287.31, 41.77)
CT = Scale(60.1, 43.7, (-91.5, 213.0))
SHAPE = (17, 23, 31)
SHAPES = {
    "shrinking": (7, 9, 12),
    "shrinking much": (2, 3, 5),
    "growing": (40, 37, 32),
    "height, depth, width": (16, 11, 31 * 2),
    "width, height, depth": (35, 22, 9),
    "depth alone": (12, 23, 31),
    "height alone": (17, 12, 31),
    "width alone": (17, 23, 50),
    "nothing": SHAPE,
    "to one voxel": (1, 1, 1),
}


def drawn(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 150, shape).astype(np.float32)


def assert_equal_bits(
    volume: np.ndarray, scale: Scale, shape: tuple[int, ...], device: str
) -> None:
    """In float32, where a sum rounded otherwise shows, and in float16."""
    expected = resample_image(scale.apply(volume), shape)
    exact, halves = np.empty(shape, np.float32), np.empty(shape, np.float16)
    gpu.fill(volume, scale, [exact, halves], torch.device(device))
    assert exact.tobytes() == expected.tobytes()
    with np.errstate(over="ignore"):
        assert halves.tobytes() == expected.astype(np.float16).tobytes()


@everywhere
@pytest.mark.parametrize("scale", [AS_IT_IS, MRI, CT], ids=["raw", "MRI", "CT"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_change_of_shape_gives_the_same_bits(
    shape: tuple[int, ...], scale: Scale, device: str
) -> None:
    assert_equal_bits(drawn(), scale, shape, device)


@everywhere
@pytest.mark.parametrize("old", [(1, 1, 1), (1, 20, 1), (13, 1, 17)])
@pytest.mark.parametrize("new", [(1, 1, 1), (4, 5, 6), (6, 1, 29)])
def test_axes_of_one_voxel_do_too(old: tuple[int, ...], new: tuple[int, ...], device: str) -> None:
    assert_equal_bits(drawn(old), MRI, new, device)


@everywhere
@pytest.mark.parametrize("seed", range(40))
def test_shapes_drawn_at_random_do_too(
    seed: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    old, new = (tuple(map(int, rng.integers(1, 48, 3))) for _ in range(2))
    monkeypatch.setattr(gpu, "_SLAB", int(rng.integers(1, 20_000)))  # so that slabs are several
    assert_equal_bits(drawn(old, seed), CT, new, device)


@everywhere
@pytest.mark.parametrize("value", [0.0, -0.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_zeros_keep_and_lose_their_sign_as_on_the_cpu(
    shape: tuple[int, ...], value: float, device: str
) -> None:
    assert_equal_bits(np.full(SHAPE, value, np.float32), AS_IT_IS, shape, device)
    mixed = np.where(drawn() > 100, np.float32(value), np.sign(drawn()) * np.float32(0))
    assert_equal_bits(mixed, AS_IT_IS, shape, device)
    for clip in ((0.0, 1.0), (-1.0, 0.0), (-0.0, 1.0)):
        assert_equal_bits(mixed, Scale(0.0, 1.0, clip), shape, device)


@everywhere
@pytest.mark.parametrize("magnitude", [1e-42, 1e-37, 1e-7, 3e-5, 1e4, 1e8, 1e34])
@pytest.mark.parametrize("shape", [(7, 9, 12), (40, 37, 32), SHAPE])
def test_numbers_of_any_size_do_too(shape: tuple[int, ...], magnitude: float, device: str) -> None:
    """Subnormal as float32 and as float16, and beyond the largest float16."""
    assert_equal_bits(drawn() * np.float32(magnitude), AS_IT_IS, shape, device)


KINDS = ["u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", "<f4", ">f4", "<f8", ">f8"]


@everywhere
@pytest.mark.parametrize("kind", [*KINDS, "<f2", "<i8"])
def test_every_type_of_voxel_gives_the_same_bits(kind: str, device: str) -> None:
    kinds = np.dtype(kind)
    if kinds.kind == "f":
        volume = drawn().astype(kind)
    else:
        limits = np.iinfo(kinds)
        volume = np.random.default_rng(0).integers(limits.min, limits.max, SHAPE, kinds.type)
    assert_equal_bits(volume.astype(kind), MRI, (12, 9, 40), device)


@everywhere
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)], ids=str)
@pytest.mark.parametrize("kind", [">i2", "<f4"])
def test_a_file_in_any_orientation_is_read_where_it_lies_without_a_warning(
    axes: tuple[int, ...], flips: tuple[int, ...], kind: str, device: str
) -> None:
    content = drawn().astype(kind).tobytes()  # read-only, as a file's is
    channels = np.frombuffer(content, kind).reshape((*SHAPE, 1), order="F")
    volume = channels[..., 0].transpose(axes)[tuple(slice(None, None, step) for step in flips)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal_bits(volume, CT, (10, 30, 19), device)


def test_the_command_makes_the_same_store_and_changes_the_way_amid_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's CPU stands in for the GPU; the next test has a real one."""
    monkeypatch.setattr(gpu, "take_gpu", lambda number: None)
    monkeypatch.setattr(gpu, "_device", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    filled = []
    fill = gpu.fill
    monkeypatch.setattr(gpu, "fill", lambda *given: (filled.append(given[3]), fill(*given)))
    options = {"grid": (6, 10, 8), "spacing": (1.5, 0.8, 1.3)}
    for modality in ("MRI", "CT"):
        folder = make_tiny(tmp_path / modality, modality)
        _, wanted = convert_tiny(folder, tmp_path / modality / "cpu", **options)
        assert not filled
        store = tmp_path / modality / "gpu"
        report, manifest = convert_tiny(folder, store, **options, resample_on="cuda")
        assert (report.written, len(filled)) == (8, 8)
        assert manifest == wanted
        report, _ = convert_tiny(folder, store, **options)
        assert (report.written, report.kept) == (0, 8)
        filled.clear()


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("task", ["Task91_PhantomTumour", "Task93_PhantomLesion"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_makes_the_same_store(
    phantom_root: Path, tmp_path: Path, task: str, workers: int
) -> None:
    manifests = [
        convert_tiny(phantom_root / task, tmp_path / on, workers=workers, resample_on=on)[1]
        for on in ("cpu", "cuda")
    ]
    assert manifests[0] == manifests[1]


@pytest.mark.gpu
@on_gpu
def test_a_ct_of_512_512_700_takes_the_memory_that_the_docs_state() -> None:
    volume = np.zeros((700, 512, 512), np.int16)
    outs = [np.empty(shape, np.float16) for shape in ((128, 128, 128), (987, 574, 574))]
    torch.cuda.init()  # which the next line wants
    torch.cuda.reset_peak_memory_stats()
    gpu.fill(volume, CT, outs, torch.device("cuda"))
    assert 2.2e9 < torch.cuda.max_memory_allocated() < 2.8e9


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_nothing_begins(tmp_path: Path) -> None:
    folder, store = make_tiny(tmp_path), tmp_path / "s"
    argv = ["--msd-root", str(folder), "--store", str(store), "--resample-on", "cuda"]
    with pytest.raises(UserError, match=r"--resample-on cuda: torch .* sees no GPU here: run"):
        convert.main(argv)
    assert not store.exists()


def test_several_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(gpu, "_device", None)
    taken = []
    for number in range(5):
        gpu.take_gpu(number)
        taken.append(str(gpu._device))
    assert taken == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more."),
            r"6x10x8 voxels .* cuda:1; ",
        ),
        (
            RuntimeError("CUDA error: out of memory\nAnd more."),
            r"6x10x8 voxels .* cuda:1; ",
        ),
        (
            RuntimeError(
                "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nAnd more."
            ),
            r"cuda:1 does not take the work \(CUDA error: .* unavailable\); ",
        ),
    ],
    ids=["full", "full at its start", "another's"],
)
def test_a_gpu_that_cannot_be_used_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, message: str
) -> None:
    def refuse(*given: object) -> None:
        raise error

    monkeypatch.setattr(gpu, "take_gpu", lambda number: None)
    monkeypatch.setattr(gpu, "_device", torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(gpu, "fill", refuse)
    with pytest.raises(UserError, match=message + ".* fewer --workers") as caught:
        convert_tiny(make_tiny(tmp_path), tmp_path / "s", resample_on="cuda")
    assert "\n" not in str(caught.value)


def test_a_conversion_on_the_cpu_does_not_import_torch(phantom_root: Path, tmp_path: Path) -> None:
    argv = ["--msd-root", str(phantom_root), "--store", str(tmp_path), "--tasks", "93"]
    argv += ["--grid", "8", "8", "8", "--workers", "1"]
    code = (
        "import sys; from data_prep.convert import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
