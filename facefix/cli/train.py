"""``facefix train`` and ``facefix dataset``: train the networks; build reference mappings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from facefix.cli.app import app
from facefix.errors import UsageError
from facefix.methods.registry import RestorationMethod, methods

train = typer.Typer(help="Train the networks of facefix's own model (needs facefix\\[train]).", no_args_is_help=True)
dataset = typer.Typer(help="Prepare data for training.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(dataset, name="dataset")

Config = Annotated[Path, typer.Argument(help="YAML file; examples lie in facefix/training/configs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run folder.")]

_SAME = {"dlib": 0.45, "arcface": 0.4}
_DUPLICATE = {"dlib": 0.15, "arcface": 0.1}


@train.command()
def autoencoder(config: Config, resume: Resume = False) -> None:
    """Train the autoencoder; the averaged model lies in RUN/model afterwards."""
    from facefix.training.autoencoder import train_autoencoder
    from facefix.training.config import AutoencoderTraining, read_config

    settings = read_config(config, AutoencoderTraining)
    outcome = train_autoencoder(settings, resume=resume)
    _report(settings.run, outcome.step, outcome.finished)


def _train_command(method: RestorationMethod) -> Callable[..., None]:
    """The command that trains the networks of a method, leg by leg."""
    legs = method.training
    lines = "; ".join(f"{name}: {leg.help}" for name, leg in legs.items())

    def command(config: Config, leg: str = next(iter(legs)), resume: Resume = False) -> None:
        from facefix.training.config import read_config

        if leg not in legs:
            raise UsageError(f"--leg: expected one of {', '.join(legs)}, found {leg!r}")
        settings = read_config(config, legs[leg].config.load())
        outcome = legs[leg].train.load()(settings, resume=resume)
        _report(settings.run, outcome.step, outcome.finished)

    command.__annotations__["leg"] = Annotated[str, typer.Option("--leg", help=f"What is trained: {lines}.")]
    command.__annotations__ |= {"config": Config, "resume": Resume, "return": None}
    command.__doc__ = f"Train {method.name}; what was trained lies in RUN/model afterwards."
    return command


for _method in methods().values():
    if _method.training:
        train.command(_method.name)(_train_command(_method))


def _report(run: Path, step: int, finished: bool) -> None:
    state = "finished" if finished else "stopped, go on with --resume"
    typer.echo(f"{run}: {state} after {step} steps")


@dataset.command()
def refs(
    images: Annotated[Path, typer.Argument(help="Folder of aligned faces (512 x 512, FFHQ framing).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the mappings.")],
    identity: Annotated[str, typer.Option(help="Network that tells people apart: dlib or arcface.")] = "dlib",
    same: Annotated[
        float | None, typer.Option(help="Largest distance of one person's faces [dlib 0.45, arcface 0.4].")
    ] = None,
    duplicate: Annotated[
        float | None, typer.Option(help="Smallest distance of a test reference [dlib 0.15, arcface 0.1].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split into train, val and test.")] = 1,
) -> None:
    """Find the people in a folder of faces and write FFHQ-Ref-style reference mappings, split by person."""
    from facefix.datasets.mappings import MappingRules, embed_folder, pairwise, write_mappings

    if identity not in _SAME:
        raise UsageError(f"--identity: expected one of {sorted(_SAME)}, found {identity!r}")
    rules = MappingRules(
        same=_SAME[identity] if same is None else same,
        duplicate=_DUPLICATE[identity] if duplicate is None else duplicate,
        seed=seed,
    )
    names, embeddings = embed_folder(images, identity)
    counts = write_mappings(out, names, pairwise(embeddings, cosine=identity == "arcface"), rules)
    typer.echo("\n".join(f"{split}: {count} faces" for split, count in counts.items()))
