import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvl_dist.config import (
    PRESETS,
    RunConfig,
    from_plain,
    identity,
    load_yaml,
    parse,
    request_key,
    to_plain,
)
from mvl_dist.errors import UserError
from mvl_dist.models import MODELS


def test_no_flag_is_the_protocol_of_the_paper() -> None:
    config = parse([])
    assert (config.data.task, config.data.fold) == ("Task01_BrainTumour", 0)
    assert (config.data.grid, config.model.patch) == ((128, 128, 128), (8, 8, 8))
    assert (config.optim.lr, config.optim.batch_size, config.optim.epochs) == (2e-3, 4, 200)
    assert (config.model.lora.rank, config.model.llm_position) == (8, 16)
    assert config.model.name == "medvisionllama"
    assert (config.data.channels, config.data.target) == ("first", "binary")


def test_the_published_codes_choices_are_a_preset() -> None:
    config = parse(["--preset", "official"])
    assert (config.model.llm_position, config.model.lora.rank) == (0, 4)
    assert config.model.lora.targets == ()


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 0.5, epochs: 7}\nmodel: {lora: {targets: [o_proj]}}\n")
    config = parse(["--preset", "smoke", f"--config={file}", "--epochs", "9"])
    assert (config.optim.lr, config.optim.epochs) == (0.5, 9)
    assert config.model.lora.targets == ("o_proj",)
    assert config.data.grid == PRESETS["smoke"]().data.grid


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_config_reads_back_as_it_was_saved(preset: str) -> None:
    config = PRESETS[preset]()
    saved = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    assert from_plain(saved, RunConfig(), "test") == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("optim: {learning_rate: 1}", "unknown key 'optim.learning_rate'"),
        ("optim: {epochs: many}", "'optim.epochs' takes a int"),
        ("data: {target: labls}", "'data.target' takes 'binary' or 'labels' or 'regions'"),
        ("data: {grid: [32, 32]}", "'data.grid' takes a list of 3 int"),
        ("model: {donor: {layers: some}}", "takes a list int or 'all'"),
        ("optim: [1]", "'optim' must be a mapping"),
        ("optim: {epochs", "not YAML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        load_yaml(file, RunConfig())
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--preset", "papr"], "known presets are paper"),
        (["--activation", "softmax", "--target", "regions"], "regions overlap: use sigmoid"),
        (["--width", "65"], "not a multiple of --heads"),
        (["--lr", "0"], "--lr is 0.0"),
        (["--dropout", "1"], "--dropout"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
    ],
)
def test_values_that_no_run_can_have_are_refused(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse(arguments)


def test_a_setting_that_is_newer_than_old_runs_does_not_rename_them() -> None:
    """The literal is what version 0.2.0 printed."""
    config, reads = PRESETS["smoke"](), MODELS["vit_baseline"].reads
    with_case = replace(config, data=replace(config.data, leave_out=("case",)))
    assert identity(config, reads, "data") == "b7fd85f5da"
    assert identity(with_case, reads, "data") != "b7fd85f5da"


def test_identity_changes_with_what_decides_the_result_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    config = PRESETS["smoke"]()

    def changed(part: str, **values: object) -> RunConfig:
        inner = dataclasses.replace(getattr(config, part), **values)
        return dataclasses.replace(config, **{part: inner})

    reads = MODELS[config.model.name].reads
    same = identity(config, reads, "data", "donor")

    def identity_of(other: RunConfig) -> str:
        return identity(other, reads, "data", "donor")

    assert identity_of(changed("data", store=tmp_path, workers=3, cache_gb=2.0)) == same
    assert identity_of(dataclasses.replace(config, output=tmp_path)) == same
    assert identity_of(changed("model", features=3)) == same  # which this model never reads
    others = [
        identity_of(changed("optim", seed=1)),
        identity_of(changed("data", fold=1)),
        identity_of(changed("model", llm_position=0)),
        identity_of(changed("model", activation="softmax")),
        identity(config, reads, "other data", "donor"),
        identity(config, reads, "data", "other donor"),
    ]
    assert len({same, *others}) == 7


def test_mirror_axes_name_a_run_that_mirrors_and_no_other() -> None:
    base, reads = PRESETS["smoke"](), MODELS["vit_baseline"].reads
    names = []
    for augmentation in ("paper", "strong"):
        data = replace(base.data, augmentation=augmentation)  # type: ignore[arg-type]
        config = replace(base, data=data)
        names.append([identity(config, reads, "data", "", axes) for axes in ((), ("W",))])
    assert names[0] == ["b7fd85f5da"] * 2
    assert len({*names[0], *names[1]}) == 3


@pytest.mark.parametrize(
    "how", [{"kernels": "triton"}, {"kernels": "torch"}, {"recompute_mlp": True}, {"compile": True}]
)
def test_how_operations_run_does_not_rename_a_run(how: dict[str, Any]) -> None:
    """The literals are what version 0.3.0 printed, which had no such setting."""
    config = dataclasses.replace(PRESETS["smoke"](), **how)
    reads = MODELS["medvisionllama"].reads
    assert identity(config, reads, "data", "donor") == "38053b12c5"
    assert request_key(config, reads) == "3f2031a599"
    assert identity(config, MODELS["vit_baseline"].reads, "data") == "b7fd85f5da"


def test_only_a_block_in_eight_bits_is_another_run() -> None:
    """The literals are what version 0.3.0 printed, which had no such setting."""
    base, reads = PRESETS["smoke"](), MODELS["medvisionllama"].reads
    found = [("38053b12c5", "3f2031a599")]
    for precision in ("model", "fp8", "int8"):
        model = dataclasses.replace(base.model, frozen_precision=precision)  # type: ignore[arg-type]
        config = dataclasses.replace(base, model=model)
        found.append((identity(config, reads, "data", "donor"), request_key(config, reads)))
        assert identity(config, MODELS["vit_baseline"].reads, "data") == "b7fd85f5da"
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_settings_of_crops_name_a_run_of_crops_and_no_other() -> None:
    """The literal is what version 0.3.0 printed, which had no crops."""
    base, reads = PRESETS["smoke"](), MODELS["vit_baseline"].reads
    assert identity(base, reads, "data") == "b7fd85f5da"
    spaced = dataclasses.replace(base.data, resolution="spaced")
    names = {identity(dataclasses.replace(base, data=spaced), reads, "data"), "b7fd85f5da"}
    for change in ({"foreground": 0.5}, {"patches_per_case": 2}, {"overlap": 0.25}):
        data = dataclasses.replace(spaced, **change)  # type: ignore[arg-type]
        names.add(identity(dataclasses.replace(base, data=data), reads, "data"))
    assert len(names) == 5


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--foreground", "1.5"], "--foreground 1.5 is out of range: 0 to 1"),
        (["--overlap", "1"], "--overlap 1 is out of range: 0 to below 1"),
        (["--patches-per-case", "0"], "--patches-per-case is 0; it must be above 0"),
        (["--resolution", "grid", "--overlap", "0.25"], "--overlap is for crops.*spaced"),
    ],
)
def test_crops_that_cannot_be_are_refused_in_a_line(flags: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        parse(["--resolution", "spaced", *flags])
    assert "\n" not in str(caught.value)


def test_a_config_saved_before_there_were_kernels_loads(tmp_path: Path) -> None:
    saved = to_plain(RunConfig())
    del saved["kernels"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(saved))
    assert load_yaml(file, RunConfig()).kernels == "auto"
    assert parse(["--config", str(file), "--kernels", "torch"]).kernels == "torch"


def test_a_model_without_a_donor_is_the_same_run_whatever_the_donor_flags_say() -> None:
    first = parse(["--model", "vit_baseline"])
    second = parse(["--model", "vit_baseline", "--donor", "smollm2-135m", "--lora-rank", "4"])
    reads = MODELS["vit_baseline"].reads
    assert identity(first, reads, "data") == identity(second, reads, "data")
    assert request_key(first, reads) == request_key(second, reads)


def test_what_was_asked_for_counts_the_donor_by_its_name() -> None:
    reads = MODELS["medvisionllama"].reads
    first, second = parse([]), parse(["--donor", "random:llama-3.1-8b"])
    assert request_key(first, reads) != request_key(second, reads)
    assert request_key(first, reads) == request_key(parse(["--workers", "0"]), reads)


@pytest.mark.parametrize("layers", [[-2, -1], "all"])
def test_layers_are_numbers_or_all(layers: list[int] | str) -> None:
    config = from_plain({"model": {"donor": {"layers": layers}}}, RunConfig(), "test")
    words = ["all"] if layers == "all" else ["-2", "-1"]
    assert parse(["--donor-layers", *words]) == config
