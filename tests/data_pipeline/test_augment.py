"""Augmentation changes pictures within its limits, the same way each time, and nothing while it is off."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.config import from_dict
from chameleon_jax.errors import ConfigError
from data_pipeline.augment import AugmentConfig, augment
from data_pipeline.forms import rng_of


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth colours that differ from place to place: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(40, 200, 48), np.linspace(40, 200, 32))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).round().astype(np.uint8))


def changed(image: Image.Image, number: int = 0, **settings) -> Image.Image:
    return augment(image, AugmentConfig(**settings), rng_of(0, str(number), "augment 0"))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64)


def test_off_is_the_picture_itself(photo):
    for settings in (AugmentConfig(), from_dict(AugmentConfig, False)):
        assert augment(photo, settings, rng_of(0, "a", "")) is photo


@pytest.mark.parametrize(
    "settings",
    [{"crop": 0.3}, {"rotation": 20}, {"shift": 0.1}, {"scale": 0.2}, {"shear": 0.2}, {"brightness": 0.3},
     {"contrast": 0.3}, {"saturation": 0.3}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_each_setting_changes_pictures_the_same_way_each_time(photo, settings):
    results = [changed(photo, number, **settings).tobytes() for number in range(8)]
    assert results == [changed(photo, number, **settings).tobytes() for number in range(8)]
    assert len({*results, photo.tobytes()}) >= 8  # two crops of so small a picture may be the same


def test_crop_keeps_aspect_ratio_and_most_of_the_picture(photo):
    places = set()
    for number in range(40):
        part = changed(photo, number, crop=0.5)
        assert 0.5 <= part.width / 48 <= 1
        assert abs(part.width / 48 - part.height / 32) < 0.04
        (left, top) = (int((pixels(photo)[0, :, 0] < pixels(part)[0, 0, 0]).sum()),
                       int((pixels(photo)[:, 0, 1] < pixels(part)[0, 0, 1]).sum()))  # fmt: skip
        assert np.array_equal(pixels(part), pixels(photo.crop((left, top, left + part.width, top + part.height))))
        places.add((left, top))
    assert len(places) > 15


def test_flip_mirrors_half_of_the_pictures(photo):
    mirrored = [changed(photo, number, flip=True).tobytes() for number in range(200)]
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    assert set(mirrored) == {photo.tobytes(), other}
    assert 65 < mirrored.count(other) < 135  # five standard deviations


def test_nothing_from_outside_shows_unless_white_is_asked_for():
    black = Image.new("RGB", (40, 60))
    moves = {"rotation": 45, "shift": 0.1, "scale": 0.3, "shear": 0.2}
    for number in range(30):
        assert pixels(changed(black, number, **moves)).max() == 0
    assert max(pixels(changed(black, number, border="white", **moves)).max() for number in range(5)) == 255


def test_rotation_and_shift_are_what_they_say():
    """A dot to the right of the centre goes to where the rotation takes it."""
    dot = Image.new("L", (101, 101), 255)
    dot.paste(0, (84, 49, 87, 52))  # 35 to the right of the centre
    for number in range(20):
        ink = 255 - pixels(changed(dot, number, rotation=30, border="white"))
        y, x = (np.indices(ink.shape) * ink).sum((1, 2)) / ink.sum() - 50
        assert np.hypot(x, y) == pytest.approx(35, abs=0.5)
        assert abs(np.degrees(np.arctan2(y, x))) < 30.5
        ink = 255 - pixels(changed(dot, number, shift=0.1, border="white"))
        y, x = (np.indices(ink.shape) * ink).sum((1, 2)) / ink.sum() - 50
        assert max(abs(x - 35), abs(y)) < 10.2


def test_colours_stay_within_their_limits(photo):
    for number in range(20):
        factors = pixels(changed(photo, number, brightness=0.2)) / pixels(photo)
        assert 0.79 < factors.min() <= factors.max() < 1.21
        assert np.ptp(factors) < 0.03  # of rounding
        grey = changed(photo, number, saturation=0.5).convert("L")
        assert np.abs(pixels(grey) - pixels(photo.convert("L"))).max() <= 2, "saturation keeps the brightness"


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA", "1", "I;16"])
def test_pictures_of_every_mode_become_rgb(mode):
    image = Image.new(mode, (20, 30))
    everything = {"crop": 0.2, "flip": True, "rotation": 5, "saturation": 0.5}
    assert changed(image, **everything).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_strips_survive(size):
    everything = {"crop": 0.9, "flip": True, "rotation": 90, "shift": 0.5, "scale": 0.5, "shear": 1, "contrast": 0.5}
    for number in range(10):
        assert min(changed(Image.new("RGB", size), number, **everything).size) >= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 1}, "crop = 1.0: must be at least 0 and below 1"),
        ({"rotation": 200}, "rotation = 200.0: must be from 0 to 180 degrees"),
        ({"shear": 2}, "shear = 2.0: must be from 0 to 1"),
    ],
)
def test_setting_that_cannot_be_is_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        AugmentConfig(**values)
    assert str(caught.value) == message
