from pathlib import Path

import pytest

from mvl_dist.errors import UserError
from mvl_dist.inputs import find_cases

TUMOUR = ("FLAIR", "T1w", "t1gd", "T2w")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(inputs: list[Path], modalities: tuple[str, ...], wanted: int) -> dict[str, list[str]]:
    cases = find_cases(inputs, modalities, wanted)
    return {case.name: [path.name for path in case.files] for case in cases}


def test_a_folder_may_hold_cases_of_every_kind(tmp_path: Path) -> None:
    nnunet = [f"b_000{n}.nii.gz" for n in (3, 1, 0, 2)]
    named = [f"c_{n}.nii.gz" for n in ("t2w", "T1W", "flair", "t1gd")]
    touch(tmp_path, "a.nii.gz", "d.nii", "notes.txt", "._a.nii.gz", *nnunet, *named)
    (tmp_path / "deeper").mkdir()
    assert found([tmp_path], TUMOUR, 4) == {
        "a": ["a.nii.gz"],
        "b": sorted(nnunet),
        "c": ["c_flair.nii.gz", "c_T1W.nii.gz", "c_t1gd.nii.gz", "c_t2w.nii.gz"],
        "d": ["d.nii"],
    }


def test_numbers_that_are_no_channel_belong_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "hippocampus_001.nii.gz", "visit_2019.nii.gz", "p_0000.nii.gz", "x_MRI.nii.gz")
    assert set(found([tmp_path], ("MRI",), 1)) == {"hippocampus_001", "visit_2019", "p", "x_MRI"}


def test_a_model_of_the_first_channel_needs_that_channels_file_alone(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz")
    assert found([tmp_path], TUMOUR, 1) == {"b": ["b_0000.nii.gz"]}


def test_files_and_folders_may_be_given_together_and_twice(tmp_path: Path) -> None:
    folder = touch(tmp_path / "more", "b.nii.gz")
    touch(tmp_path, "a.nii.gz")
    inputs = [tmp_path / "a.nii.gz", folder, folder / "b.nii.gz"]
    assert set(found(inputs, ("MRI",), 1)) == {"a", "b"}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "holds no .nii.gz"),
        (
            ["a_0000.nii.gz", "a_0002.nii.gz", "a_0003.nii.gz"],
            r"of channel 1 \(T1w\), a_0001",
        ),
        (["a.nii.gz", "a.nii"], "both case a"),
        (["a.nii.gz", *(f"a_000{n}.nii.gz" for n in range(4))], "both case a"),
        (["a_0000.nii.gz", "a_FLAIR.nii.gz"], "both channel 0 of case a"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        find_cases([touch(tmp_path / "in", *names)], TUMOUR, 4)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.nii.gz", "scan.dcm"])
def test_what_is_no_nifti_file_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "scan.dcm")
    with pytest.raises(UserError, match=r"no such file|not a NIfTI file by its name"):
        find_cases([tmp_path / name], TUMOUR, 4)
