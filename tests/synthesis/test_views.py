"""Views: what moves or is mixed, by how much, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from edgekd.recipe.method import StudentUpdateTable
from edgekd.rng import KeyedDraws
from edgekd.synthesis.views import view

DRAWS = KeyedDraws(1, "test", torch.device("cpu"))


def images(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 2, 5, 6, generator=torch.Generator().manual_seed(0))


def test_nothing_is_drawn_where_nothing_was_asked() -> None:
    x = images()
    assert view(x, StudentUpdateTable(), 3, DRAWS) is x


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched() -> None:
    x = images()
    views = view(x, StudentUpdateTable(flip=True), 3, DRAWS)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(views, x, strict=True)]
    assert 10 < sum(mirrored) < 30
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, views, x, strict=True))


def test_shifted_images_are_windows_of_the_padded_ones() -> None:
    x = images()
    views = view(x, StudentUpdateTable(shift=2), 3, DRAWS)
    assert views.shape == x.shape
    padded = torch.nn.functional.pad(x, [2] * 4)
    every_place = set()
    for image, around in zip(views, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, around[:, i : i + 5, j : j + 6])]
        assert len(places) == 1
        every_place |= set(places)
    assert len(every_place) > 12, "25 places are possible"
    assert {0, 4} <= {i for i, _ in every_place} & {j for _, j in every_place}


@pytest.mark.parametrize(("channels", "flip", "shift"), [(3, True, 2), (1, False, 1), (4, False, 1)])
def test_colour_images_are_mirrored_and_moved_further_than_grey_ones(channels: int, flip: bool, shift: int) -> None:
    x = torch.randn(20, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    automatic = view(x, StudentUpdateTable(flip="auto", shift="auto"), 3, DRAWS)
    assert torch.equal(automatic, view(x, StudentUpdateTable(flip=flip, shift=shift), 3, DRAWS))


def test_draws_belong_to_the_step() -> None:
    table = StudentUpdateTable(flip=True, shift=2, mixup=0.5, cutmix=0.5)
    assert torch.equal(view(images(), table, 3, DRAWS), view(images(), table, 3, DRAWS))
    assert not torch.equal(view(images(), table, 3, DRAWS), view(images(), table, 4, DRAWS))


def test_mixup_makes_weighted_means_of_two_images_with_weights_of_their_own() -> None:
    x = images()
    weights = []
    for mixed, image in zip(view(x, StudentUpdateTable(mixup=1.0), 3, DRAWS), x, strict=True):
        # mixed = w * image + (1 - w) * partner, so that mixed - image is a multiple of partner - image
        fits = []
        for partner in x:
            step = partner - image
            share = float(((mixed - image) * step).sum() / step.square().sum()) if step.any() else 0.0
            fits.append((float((image + share * step - mixed).abs().max()), share))
        error, share = min(fits)
        assert error < 1e-5
        weights.append(share)
    assert all(0 <= share <= 1 for share in weights)
    assert max(weights) - min(weights) > 0.8


def test_cutmix_puts_a_rectangle_of_one_image_into_another() -> None:
    x = torch.arange(40.0).view(-1, 1, 1, 1).expand(40, 2, 12, 10).contiguous()
    shares = []
    for index, cut in enumerate(view(x, StudentUpdateTable(cutmix=1.0), 3, DRAWS)):
        changed = cut[0] != index
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns[None, :])
        assert len(cut.unique()) <= 2
        shares.append(float(changed.float().mean()))
    assert min(shares) < 0.1 < 0.6 < max(shares)


def test_a_share_of_the_images_is_mixed_and_a_single_image_stays() -> None:
    x = images(200)
    for table in (StudentUpdateTable(mixup=0.3), StudentUpdateTable(cutmix=0.3)):
        untouched = [torch.equal(a, b) for a, b in zip(view(x, table, 3, DRAWS), x, strict=True)]
        assert 100 < sum(untouched) < 180
    both = StudentUpdateTable(mixup=1.0, cutmix=1.0)
    assert torch.allclose(view(x[:1], both, 3, DRAWS), x[:1])
