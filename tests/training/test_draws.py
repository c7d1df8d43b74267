"""Batches for a denoiser: whose references a face gets, how often it has none, which side it is seen from."""

from __future__ import annotations

from pathlib import Path

import torch

from facefix.datasets.faces import TrainingFace
from facefix.training.config import References
from facefix.training.draws import Draws
from facefix.training.latents import LatentBank

PEOPLE = 3
"""people with two pictures each, and as many with one"""


def faces() -> tuple[TrainingFace, ...]:
    several = [
        TrainingFace(Path(f"{person}{picture}"), f"person {person}", (2 * person + 1 - picture,))
        for person in range(PEOPLE)
        for picture in range(2)
    ]
    return (*several, *(TrainingFace(Path(f"lone{n}"), f"lone {n}", ()) for n in range(PEOPLE)))


def bank(*, guides: bool = False) -> LatentBank:
    """Every latent says what it is: 1000 times the face plus 100 times the part plus the version."""
    count, versions = 3 * PEOPLE, 2

    def part(number: int) -> torch.Tensor:
        face = torch.arange(count).view(-1, 1) * 100 + number * 10 + torch.arange(versions)
        return face.view(count, versions, 1, 1, 1).expand(-1, -1, 8, 2, 2).half()

    return LatentBank(part(0), part(1), part(2), part(3) if guides else None)


def draws(*, aligned: bool = False, **settings: object) -> Draws:
    return Draws(References.model_validate(settings), faces(), bank(guides=aligned), aligned)


def values(latents: torch.Tensor) -> list[int]:
    return [int(latent.flatten()[0]) for latent in latents]


def test_a_batch_holds_the_latents_of_its_faces() -> None:
    batch = draws(share=2, nulled=0.0).batch(list(range(9)), 8, torch.Generator().manual_seed(0))
    chosen = batch.faces.tolist()
    assert chosen[::2] == chosen[1::2]
    assert [value // 100 for value in values(batch.good)] == chosen
    assert [value % 100 for value in values(batch.good)] == batch.mirrored.tolist()
    assert [value // 10 for value in values(batch.degraded)] == [face * 10 + 1 for face in chosen]
    assert torch.equal(batch.base, batch.degraded)


def test_references_are_other_pictures_of_the_person_and_the_own_picture_where_there_is_no_other() -> None:
    drawn = draws(count=2, nulled=0.0)
    references = drawn.references(torch.arange(9), torch.Generator().manual_seed(0))
    assert references.shape == (9, 2, 8, 2, 2)
    for face, mine in zip(faces(), references, strict=True):
        own = int(face.references[0]) if face.references else faces().index(face)
        assert {value // 10 for value in values(mine)} == {own * 10 + 2}


def test_absent_references_come_last_and_nulled_ones_are_zero() -> None:
    half = draws(share=1, absent=0.5, nulled=0.0).batch(list(range(9)), 64, torch.Generator().manual_seed(0))
    assert 16 < len(half.references) < 48
    assert bool((half.references.flatten(1).abs().sum(1) > 0).all())
    nulled = draws(share=1, absent=0.0, nulled=1.0).batch(list(range(9)), 8, torch.Generator().manual_seed(0))
    assert len(nulled.references) == 8 and not nulled.references.any()


def test_more_samples_of_people_with_several_pictures() -> None:
    drawn = draws(paired=0.9, share=1).batch(list(range(9)), 1000, torch.Generator().manual_seed(0))
    assert 0.85 < float((drawn.faces < 2 * PEOPLE).float().mean()) < 0.95


def test_aligned_references_are_seen_from_the_side_of_their_faces() -> None:
    drawn = draws(aligned=True, share=2, nulled=0.0, absent=0.0, pristine=0.5)
    batch = drawn.batch(list(range(9)), 40, torch.Generator().manual_seed(0))
    assert set(batch.mirrored.tolist()) == {0, 1}
    for side, reference in zip(batch.mirrored[::2].tolist(), values(batch.references[:, 0]), strict=True):
        face, part, version = reference // 100, reference % 100 // 10, reference % 10
        assert (version if part == 0 else (face + version) % 2) == side
    assert [value // 10 % 10 for value in values(batch.base)] == [3] * 40
