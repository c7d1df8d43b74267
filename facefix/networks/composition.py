"""The guide of a face: what damage has left of it, cleaned, and what it lost, from references that lie on it.

Band by band of a Laplacian pyramid, from coarse to fine. What an estimate (:mod:`facefix.networks.survival`) says has
survived is kept, with Wiener's gain, so that noise and blocks go. The rest is taken from the references, warped onto
the face (:mod:`facefix.networks.warp`), each where it agrees with what has survived of the coarser bands: where one
does not fit another may, and where none does nothing is taken. So a face that has lost little is cleaned and not
changed.

References lend their light and shade in the photo's own contrast and tone: to a grey face nothing but luma, to a sepia
one its sepia.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from facefix.networks.landmarks import LandmarkNetwork, Landmarks
from facefix.networks.survival import Survival, bands, luma_chroma, resized, rgb
from facefix.networks.warp import thin_plate_warp

_NEIGHBOURHOOD = 7
"""px of a band, within which it is measured whether two faces agree"""

_MOST_PLACES = 128
"""a side, at which that is measured"""

_SHARPNESS = 12.0
"""of the choice between references: their weights are the softmax of this times their agreement"""

_FACE = (0.29, 0.86, 0.25, 0.75)
"""top, bottom, left, right of brows to chin in FFHQ's framing, as fractions of the crop"""

_HEALTH = (0.25, 0.5)
"""mean surviving fraction of all bands up to which all that is missing is taken, and from which on the least"""

_MOST_CAUTION = 2.0

_LEFT_ALONE = 0.5
"""How far gains are taken back to 1 where most has survived"""

_CONTRAST = (0.35, 1.25)
"""limits of the factor that brings a reference to the photo's contrast"""


@dataclass(frozen=True, slots=True)
class LaidReferences:
    """N references of each of B faces, lying on them."""

    images: torch.Tensor
    """(B, N, 3, S, S) RGB in [-1, 1]"""
    certainty: torch.Tensor
    """(B, N, 1, c, c) 0 to 1: how surely they lie right"""


def lay_references(
    lq: torch.Tensor, references: torch.Tensor, landmarks: torch.Tensor, network: LandmarkNetwork
) -> LaidReferences:
    """References warped onto faces whose landmarks a network predicts.

    :param lq: (B, 3, S, S) FFHQ-framed faces in [-1, 1].
    :param references: (1, N, 3, S, S) for all faces, or (B, N, 3, S, S) for each its own, likewise.
    :param landmarks: (1 or B, N, 68, 3) the references' points and deviations in px of the 512 crop.
    """
    count = references.shape[1]
    found = network(lq)
    faces = Landmarks(found.points.repeat_interleave(count, 0), found.deviation.repeat_interleave(count, 0))
    known = landmarks.float().expand(len(lq), -1, -1, -1).flatten(0, 1)
    warp = thin_plate_warp(Landmarks(known[..., :2], known[..., 2]), faces)
    laid = warp(references.expand(len(lq), -1, -1, -1, -1).flatten(0, 1))
    return LaidReferences(laid.unflatten(0, (len(lq), count)), warp.certainty.unflatten(0, (len(lq), count)))


def compose_guide(lq: torch.Tensor, survival: Survival, references: LaidReferences | None = None) -> torch.Tensor:
    """What is left of LQ faces, cleaned, with what they lost taken from references.

    :param lq: (B, 3, S, S) FFHQ-framed faces in [-1, 1], S a multiple of 32.
    :param survival: of these faces.
    :returns: (B, 3, S, S), not clamped. Each row is what it is alone.
    """
    coarse, own = bands(luma_chroma(lq.float()))
    lent = None if references is None else _Lent(coarse, own, survival, references)
    print_slope = _print_slope(coarse)
    caution = _caution(survival)
    for band in reversed(range(len(own))):
        kept = _cleaned(own[band], survival, band, print_slope)
        if lent is not None:
            fraction = _at(survival.fraction[:, band, None], own[band].shape[-1])
            detail, agreed = lent.band(band, kept, fraction)
            missing = (1 - fraction) ** _at(caution, own[band].shape[-1])
            kept = torch.lerp(kept, detail, missing * agreed)
        coarse = resized(coarse, own[band].shape[-1]) + kept
    return rgb(coarse)


def limit_change(change: torch.Tensor, survival: Survival) -> torch.Tensor:
    """What a network would change of faces, less where more of a band has survived: a whole face is left as it is.

    :param change: (B, 3, S, S) differences of pictures, S a multiple of 32.
    :param survival: of the faces.
    """
    coarse, parts = bands(change.float())
    caution = _caution(survival) / 2
    for band in reversed(range(len(parts))):
        side = parts[band].shape[-1]
        share = (1 - _at(survival.fraction[:, band, None], side)) ** _at(caution, side)
        coarse = resized(coarse, side) + parts[band] * share
    return coarse


class _Lent:
    """The bands of references in the photo's contrast and tone, and how far each agrees with the face at each place."""

    def __init__(
        self, coarse: torch.Tensor, own: list[torch.Tensor], survival: Survival, references: LaidReferences
    ) -> None:
        self.count = references.images.shape[1]
        others, self.bands = bands(luma_chroma(references.images.flatten(0, 1).float()))
        self.agreed = references.certainty.flatten(0, 1)  # (B N, 1, c, c)
        tone = _Tone(coarse.repeat_interleave(self.count, 0), others)
        self.bands = [tone(band) for band in self.bands]
        contrast = _contrast(own, self.bands, survival, self.count)
        self.bands = [band * contrast for band in self.bands]

    def band(self, number: int, kept: torch.Tensor, fraction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, s, s) detail of the references that agree most at each place, and (B, 1, s, s) how far they do.

        Then the band itself, where enough of it has survived, tells how far they agree in the finer ones.
        """
        side, count = kept.shape[-1], self.count
        mine, theirs = kept.repeat_interleave(count, 0)[:, :1], self.bands[number]
        share = fraction.repeat_interleave(count, 0)
        agreed = _at(self.agreed, side)
        self.agreed = torch.lerp(agreed, _agreement(mine, theirs[:, :1], share), 0.7 * share)
        weights = torch.softmax(_SHARPNESS * self.agreed.unflatten(0, (-1, count)), 1)  # (B, N, 1, s, s)
        detail = (weights * theirs.unflatten(0, (-1, count))).sum(1)
        return detail, (weights * self.agreed.unflatten(0, (-1, count))).sum(1)


class _Tone:
    """Takes detail from the colours of one picture to those of another: (n, 3, s, s) luma and chroma bands.

    What chroma follows from the luma (all of it in a toned print) is replaced by what follows from it in the other
    picture; the rest is multiplied by how much colourful the other one is.
    """

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        to_slope, to_spread = _chroma(target)
        self.from_slope, from_spread = _chroma(source)
        self.to_slope = to_slope
        self.saturation = (to_spread / (from_spread + 1e-4)).clamp(max=1)

    def __call__(self, band: torch.Tensor) -> torch.Tensor:
        luma, chroma = band[:, :1], band[:, 1:]
        chroma = self.to_slope * luma + self.saturation * (chroma - self.from_slope * luma)
        return torch.cat([luma, chroma], 1)


def _chroma(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, s, s) -> (n, 2, 1, 1) slope of each chroma on the luma, (n, 1, 1, 1) spread of what it leaves."""
    centred = picture - picture.mean((2, 3), keepdim=True)
    luma, chroma = centred[:, :1], centred[:, 1:]
    slope = (luma * chroma).mean((2, 3), keepdim=True) / (luma.square().mean((2, 3), keepdim=True) + 1e-5)
    rest = chroma - slope * luma
    return slope, rest.square().mean((1, 2, 3), keepdim=True).sqrt()


def _caution(survival: Survival) -> torch.Tensor:
    """(B, 1, h, w): power of the missing share that is taken, 1 where little has survived, more where most has.

    What a slightly damaged face seems to lack is as often a fault of the estimate as of the face.
    """
    return 1 + _MOST_CAUTION * _health(survival)


def _health(survival: Survival) -> torch.Tensor:
    """(B, 1, h, w): 0 where little of all bands has survived, 1 where most has."""
    low, high = _HEALTH
    return ((survival.fraction.mean(1, keepdim=True) - low) / (high - low)).clamp(0, 1)


def _print_slope(coarse: torch.Tensor) -> torch.Tensor:
    """(n, 2, 1, 1) slope of the chromas of a toned print on its luma; 0 for a picture whose colours are its own."""
    slope, rest = _chroma(coarse)
    chroma = coarse[:, 1:] - coarse[:, 1:].mean((2, 3), keepdim=True)
    explained = 1 - rest.square() / (chroma.square().mean((1, 2, 3), keepdim=True) + 1e-9)
    return slope * ((explained - 0.7) / 0.25).clamp(0, 1)


def _cleaned(band: torch.Tensor, survival: Survival, number: int, print_slope: torch.Tensor) -> torch.Tensor:
    """(B, 3, s, s) band with Wiener's gains, nearer 1 where most has survived.

    What chroma follows from the luma follows from the cleaned luma.
    """
    kept = _health(survival) * _LEFT_ALONE
    luma_gain, chroma_gain = (
        _at(torch.lerp(gain[:, number, None], torch.ones_like(kept), kept), band.shape[-1])
        for gain in (survival.gain, survival.chroma_gain)
    )
    luma, chroma = band[:, :1], band[:, 1:]
    cleaned = luma * luma_gain
    return torch.cat([cleaned, print_slope * cleaned + chroma_gain * (chroma - print_slope * luma)], 1)


def _contrast(own: list[torch.Tensor], lent: list[torch.Tensor], survival: Survival, count: int) -> torch.Tensor:
    """(B N, 1, 1, 1): how much stronger the photo's surviving bands are than the references', within limits."""
    mine = theirs = lent[0].new_zeros(())
    for number, (band, other) in enumerate(zip(own, lent, strict=True)):
        fraction = _at(survival.fraction[:, number, None], band.shape[-1])
        gain = _at(survival.gain[:, number, None], band.shape[-1])
        weight = _inside(fraction**2).repeat_interleave(count, 0)
        left = _inside(band[:, :1] * gain).repeat_interleave(count, 0)
        scale = 1 / band.shape[-1] ** 2
        mine = mine + (weight * left.square()).sum((1, 2, 3)) * scale
        theirs = theirs + (weight * _inside(other[:, :1]).square()).sum((1, 2, 3)) * scale
    factor = ((mine + 1e-6) / (theirs + 1e-6)).sqrt().clamp(*_CONTRAST)
    return factor.view(-1, 1, 1, 1)


def _inside(images: torch.Tensor) -> torch.Tensor:
    """The face's part of (n, c, s, s)."""
    top, bottom, left, right = (round(fraction * images.shape[-1]) for fraction in _FACE)
    return images[:, :, top:bottom, left:right]


def _agreement(one: torch.Tensor, other: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """(n, 1, s, s) bands -> (n, 1, s, s): 1 where they are the same picture, 0 where they are unrelated.

    The local correlation over what it would be if the other were the truth, of which ``fraction`` has survived.
    """
    product, first, second = _local_mean(one * other), _local_mean(one.square()), _local_mean(other.square())
    correlation = _at(product / ((first * second).sqrt() + 2e-5), one.shape[-1])
    return (correlation / fraction.clamp_min(0.05).sqrt()).clamp(0, 1)


def _local_mean(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, s, s) -> (n, 1, t, t), t at most 128: means over neighbourhoods that overlap."""
    stride = max(1, images.shape[-1] // _MOST_PLACES)
    return F.avg_pool2d(images, _NEIGHBOURHOOD, stride, padding=_NEIGHBOURHOOD // 2, count_include_pad=False)


def _at(estimate: torch.Tensor, side: int) -> torch.Tensor:
    """(n, 1, h, w) -> (n, 1, side, side)"""
    if estimate.shape[-1] == side:
        return estimate
    return F.interpolate(estimate, (side, side), mode="bilinear", align_corners=False)
