"""`mvl export RUN`: a trained model as a small folder that stands alone, and as a MONAI bundle."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from mvl_dist.errors import UserError
from mvl_dist.files import PARTIAL, full_disk_is_a_user_error

EXTRACTED_WITH_SEED = 0  # `mvl weights extract` draws random:SHAPE with it, a run with its own


@dataclass(frozen=True)
class ExportArguments:
    """Write a trained model as a folder that `mvl predict` loads, without store and checkpoints."""

    run: Annotated[str, tyro.conf.Positional]
    """MLflow run id, run folder or exported folder."""
    output: Path
    """Folder to write."""
    with_donor: bool = False
    """Put the frozen language-model block in too (its licence goes with it)."""
    monai_bundle: Path | None = None
    """Write a MONAI bundle as well, which holds the whole network."""
    donor: str = ""
    """Where the model's language-model block lies now: known name or path."""


def main(argv: Sequence[str]) -> int:
    """Entry of `mvl export`."""
    arguments = tyro.cli(
        ExportArguments,
        args=list(argv),
        prog="mvl export",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for folder in filter(None, (arguments.output, arguments.monai_bundle)):
        _refuse_to_replace(folder)
    from mvl_dist.finding import find_model

    found = find_model(arguments.run)
    export(found, arguments.output, arguments.with_donor, arguments.donor)
    print(f"{arguments.output}: {_megabytes(arguments.output):.1f} MB")
    if arguments.monai_bundle:
        from mvl_dist.bundle import write_bundle

        with appearing(arguments.monai_bundle) as folder:
            write_bundle(found, folder, arguments.donor)
        print(f"{arguments.monai_bundle}: {_megabytes(arguments.monai_bundle):.1f} MB")
    return 0


def export(found: Path, output: Path, with_donor: bool = False, donor: str = "") -> None:
    """Write a model's folder into `output`, which appears when it is whole.

    config.yaml, run.json, split.json and best.safetensors are those of a run's folder, without the
    paths of the machine that trained it; README.md is the model card.

    Args:
        found: folder of a trained model, as `find_model` gives it.
        with_donor: put the language-model block in, as donor/.
        donor: where that lies now.

    Raises:
        UserError: nothing trained there, the donor is not found or not the one, or a full disk.
    """
    from mvl_dist import __version__, runs
    from mvl_dist.checkpoint import BEST
    from mvl_dist.config import to_plain
    from mvl_dist.model_card import model_card
    from mvl_dist.models import MODELS
    from mvl_dist.postprocess import POSTPROCESSING
    from mvl_dist.trained import DONOR, read_recipe, weights_checksum

    recipe = read_recipe(found)
    config, about = runs.about_run(found)
    needs_donor = MODELS[config.model.name].needs_donor
    if with_donor and not needs_donor:
        raise UserError(f"--with-donor: {config.model.name} holds no language-model block")
    config = replace(
        config,
        data=replace(config.data, store=Path("store")),
        output=Path("runs"),
        model=replace(config.model, donor=_reference(config.model.donor, config.optim.seed)),
    )
    told = {
        "donor_checksum": about.get("donor_checksum", ""),
        "data_checksum": about.get("data_checksum", ""),
        "weights_checksum": weights_checksum(found),
        "program": f"mvl-dist {__version__}",
        **recipe.to_plain(),
    }
    with appearing(output) as folder:
        (folder / runs.CONFIG).write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
        (folder / runs.ABOUT).write_text(json.dumps(told, indent=1))
        for name in ("split.json", BEST, "test_cases.csv", POSTPROCESSING):
            if (found / name).is_file():
                shutil.copyfile(found / name, folder / name)
        if with_donor:
            _copy_donor(found, folder / DONOR, donor)
        card = model_card(folder, replace(recipe, config=config), told, needs_donor)
        (folder / "README.md").write_text(card)


def _reference(donor: Any, seed: int) -> Any:
    """A donor's config that means something on another machine: a known name where there is one."""
    from mvl_dist.models.donors import KNOWN_DONORS

    path = Path(donor.source)
    if donor.source in KNOWN_DONORS or not path.exists():
        return donor
    try:
        about = json.loads((path / "source.json").read_text())
        drawn = about["source"].startswith("random:") and seed == EXTRACTED_WITH_SEED
        if about["source"] in KNOWN_DONORS or drawn:
            return replace(donor, source=about["source"], layers=tuple(about["layers"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no folder of `mvl weights extract`
    return replace(donor, source=path.name)


def _copy_donor(found: Path, folder: Path, asked: str) -> None:
    from mvl_dist import runs
    from mvl_dist.models.donors.extract import extract
    from mvl_dist.trained import donor_of, read_recipe

    recipe = read_recipe(found)
    place = donor_of(found, recipe, asked)
    done = extract(place.source, place.layers, folder, seed=recipe.config.optim.seed)
    expected = runs.about_run(found)[1].get("donor_checksum")
    if done.checksum != expected:
        raise UserError(
            f"donor {place.source} is not the one that {found} was trained with (checksum "
            f"{done.checksum}, then {expected}): say where that one lies with --donor"
        )


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A folder to fill that is renamed to `output` when the block ends well, else removed."""
    _refuse_to_replace(output)
    folder = output.with_name(f"{PARTIAL}{output.name}")
    with full_disk_is_a_user_error(output.parent):
        shutil.rmtree(folder, ignore_errors=True)  # of a killed export
        folder.mkdir(parents=True)
        try:
            yield folder
            if output.exists():
                output.rmdir()
            folder.rename(output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_to_replace(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} holds something already: delete it or choose another folder")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
