"""``facefix evaluate``: how good is a model, on faces whose truth is known?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from facefix.cli.app import app


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 (one option each)
    faces: Annotated[
        Path,
        typer.Argument(
            help="Folder with a manifest.csv, or with a folder of pictures per person; or a manifest or FFHQ-Ref CSV."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Installed weights or a folder; repeatable; 'none': only the LQ input. Default: the best."),
    ] = None,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            help="severe, moderate, spec, or given (LQ pictures of the set); repeatable; default: the first two."
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="references, no-references or wrong-references; repeatable; default: all three."),
    ] = None,
    references: Annotated[int, typer.Option(min=1, help="References per face, at most.")] = 5,
    steps: Annotated[list[int] | None, typer.Option(help="Denoising steps; several are compared.")] = None,
    guidance: Annotated[list[float] | None, typer.Option(help="Guidance scale; several are compared.")] = None,
    sampler: Annotated[list[str] | None, typer.Option(help="ddim, dpm++ or unipc; several are compared.")] = None,
    start_timestep: Annotated[
        list[int] | None, typer.Option(help="Start from the LQ latent noised to this timestep; several are compared.")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Every way to sample that the model's method compares: steps, samplers, from noise and from LQ.",
        ),
    ] = False,
    ablation: Annotated[
        list[str] | None,
        typer.Option(help="Also without this part of the method (guided: guide, attention, detail); repeatable."),
    ] = None,
    autoencoder: Annotated[
        bool, typer.Option(help="Also encode and decode the truth: the best a latent model can do.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of degradations, noise, wrong references and intervals.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many faces, spread over the set.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that an FFHQ-Ref CSV names.")] = None,
    lq: Annotated[Path | None, typer.Option(help="Folder of its LQ pictures.")] = None,
    arcface: Annotated[
        Path | None, typer.Option(help="ONNX file of an insightface recognition model, to measure identity with too.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for evaluation.json and the sheets of pictures.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Degrade known faces, restore them, and compare with the truth: identity, perceptual distance, PSNR, SSIM, speed.

    Differences between conditions are paired, with 95 % bootstrap intervals. Identity is embedded on the aligned crop
    as it lies, without detecting the face again.
    """
    from facefix.datasets.targets import FFHQRefFolders, read_faces, spread
    from facefix.device import choose_device, choose_dtype
    from facefix.evaluation.measure import evaluate
    from facefix.evaluation.methods import Variants, load_methods
    from facefix.evaluation.metrics import MetricSet, installed_arcface
    from facefix.evaluation.results import Plan
    from facefix.evaluation.tables import parse_conditions, write_results
    from facefix.methods.base import SamplingGrid
    from facefix.progress import open_progress
    from facefix.weights.catalogue import best_installed_model

    where = choose_device(device)
    plan = Plan(
        tuple(degradation or ("severe", "moderate")),
        parse_conditions(condition, sweep=sweep),
        max_references=references,
        seed=seed,
    )
    found = spread(read_faces(faces, FFHQRefFolders(images, lq)), limit)
    models = [name for name in model or [best_installed_model()] if name != "none"]
    default = SamplingGrid()
    grid = SamplingGrid(
        steps=steps or default.steps,
        samplers=sampler or default.samplers,
        guidance_scales=guidance or default.guidance_scales,
        start_timesteps=start_timestep or default.start_timesteps,
    )
    variants = Variants(grid, sweep, tuple(ablation or ()), autoencoder and not sweep)
    methods = load_methods(models, variants, device=where, dtype=choose_dtype(dtype, where))
    metrics = MetricSet.load(where, arcface or installed_arcface())
    with open_progress(quiet=quiet) as progress:
        evaluation = evaluate(found, methods, metrics, plan, progress)
    write_results(evaluation, output, as_json_text=json)
