"""``facefix face``: restore one aligned crop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from facefix.cli.app import app


@app.command()
def face(
    lq: Annotated[Path, typer.Argument(metavar="LQ", help="The aligned face crop to restore (FFHQ framing).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where the restored crop goes.")],
    ref: Annotated[
        list[Path] | None, typer.Option("--ref", metavar="IMAGE", help="A reference of the same person; repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of installed weights, or a folder; default: the best.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the model's own.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, dpm++ or unipc; default: the model's own.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the start noise.")] = 2024,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
) -> None:
    """Restore one aligned face crop."""
    from facefix.device import choose_device, choose_dtype
    from facefix.jobs.aligned_face import CropRequest, restore_crop
    from facefix.methods.base import SamplingSettings

    where = choose_device(device)
    restore_crop(
        CropRequest(lq, ref or [], output),
        model=model,
        device=where,
        dtype=choose_dtype(dtype, where),
        sampling=SamplingSettings(steps, guidance, sampler, seed),
        say=lambda note: typer.echo(f"facefix: {note}", err=True),
    )
