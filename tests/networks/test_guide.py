"""The guide: which reference it is, and what it takes from it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from facefix.networks.guide import choose_references, complete
from facefix.networks.images import to_tensor


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def images(*seeds: int) -> torch.Tensor:
    return torch.cat([to_tensor(picture(seed), 64, argument="images") for seed in seeds])


def blurred(images: torch.Tensor) -> torch.Tensor:
    small = F.interpolate(images, scale_factor=1 / 4, mode="area")
    return F.interpolate(small, size=images.shape[2:], mode="bicubic").clamp(-1, 1)


def noise(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grain(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(seed))


def test_a_face_that_lost_nothing_is_left_as_it_is() -> None:
    face, other = noise(1), 0.5 * noise(2)
    torch.testing.assert_close(complete(face, other), face, rtol=0, atol=1e-5)


def test_a_blurred_face_gets_the_detail_of_the_reference_and_keeps_its_light() -> None:
    truth = noise(1)
    lq = blurred(truth) * 0.5 + 0.2
    guide = complete(lq, truth)
    assert (guide - truth).std() < 0.3 * (lq - truth).std()
    torch.testing.assert_close(guide.mean((2, 3)), lq.mean((2, 3)), rtol=0, atol=0.01)
    flat = complete(lq, torch.zeros_like(lq))  # a reference without detail has none to give
    torch.testing.assert_close(flat, lq, rtol=0, atol=0.05)


def test_a_reference_lends_less_detail_where_it_shows_something_else() -> None:
    """On the right, light is dark: fine bands from there would lie over the face as a ghost."""
    coarse = F.interpolate(images(1), size=512, mode="bicubic")
    truth = coarse + 0.2 * grain(3)
    reference = torch.cat([truth[..., :256], 0.2 * grain(4)[..., 256:] - coarse[..., 256:]], dim=3)
    lq = F.interpolate(F.interpolate(truth, scale_factor=1 / 8, mode="area"), size=512, mode="bicubic")
    added = (complete(lq, reference) - lq).square().mean((0, 1, 2)).sqrt()
    assert added[320:].mean() < 0.8 * added[:192].mean()


def test_the_reference_laid_out_most_like_the_face_is_chosen() -> None:
    references = images(1, 2, 3)[None]
    faces = torch.cat([0.5 * references[0, 2:] + 0.3, 0.8 * references[0, :1] - 0.1])  # other light, other contrast
    assert torch.equal(choose_references(blurred(faces), references), references[0, [2, 0]])


def test_each_face_chooses_for_itself() -> None:
    faces, references = images(1, 2, 3), images(4, 5, 6, 7)[None]
    together = choose_references(faces, references)
    alone = torch.cat([choose_references(face[None], references) for face in faces])
    assert torch.equal(together, alone)
    per_row = torch.stack([references[0].roll(shift, 0) for shift in range(3)])
    assert torch.equal(choose_references(faces, per_row), together)
