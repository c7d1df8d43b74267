"""Where faces are: the parts of a training configuration that name folders, manifests and mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Faces(Section):
    """Where the training faces are. Paths are relative to the configuration file."""

    images: tuple[Path, ...] = Field(min_length=1)
    """folders of aligned faces"""
    manifest: Path | None = None
    """CSV with columns ``file`` (relative to itself) and ``identity``; without one every face is its own person"""
    mapping: Path | None = None
    """FFHQ-Ref CSV with columns ``gt_image`` and ``ref_image``: which references belong to which face"""
    size: Literal[64, 128, 256, 512] = 256
    """px that the networks see"""
    limit: Count | None = None
    """use only so many faces"""
