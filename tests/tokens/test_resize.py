"""A part of a resized picture has the bits that resizing the whole gives it, and costs no more than the part."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chameleon_jax.config import PreprocessingConfig
from chameleon_jax.tokens import image as preparing
from chameleon_jax.tokens.resize import resize_part

LANCZOS = Image.Resampling.LANCZOS


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


@given(
    source=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    data=st.data(),
)
def test_part_has_the_bits_of_the_whole(source, target, data):
    spans = [sorted(data.draw(st.tuples(st.integers(0, side - 1), st.integers(1, side)))) for side in target]
    (left, right), (top, bottom) = ((start, stop + (start == stop)) for start, stop in spans)
    picture = noise(source)
    # In two steps, as the order in which Pillow itself takes width and height depends on its version.
    whole = picture.resize((target[0], source[1]), LANCZOS).resize(target, LANCZOS)
    box = (left, top, right, bottom)
    assert resize_part(picture, target, box).tobytes() == whole.crop(box).tobytes()


@pytest.mark.parametrize("style", ["meta", "huggingface"])
@pytest.mark.parametrize("size", [(3, 80), (80, 3), (1, 33), (700, 30), (5, 5), (40, 31)])
def test_long_pictures_become_the_squares_of_the_plain_way(monkeypatch, size, style):
    """Those that Pillow resizes in the order of `resize_part`: not high ones that become smaller."""
    preprocessing = PreprocessingConfig(style=style)
    monkeypatch.setattr(preparing, "LONGEST_WHOLE", 10**6)
    whole = preparing.to_square(noise(size), 16, preprocessing)
    monkeypatch.setattr(preparing, "LONGEST_WHOLE", 0)
    assert preparing.to_square(noise(size), 16, preprocessing).tobytes() == whole.tobytes()


@pytest.mark.parametrize("size", [(64, 48), (40, 31), (33, 32), (200, 150), (100, 16), (20, 9)])
def test_wide_pictures_are_resized_as_if_nothing_was_cut_off(size):
    whole = noise(size).resize((round(32 / size[1] * size[0]), 32), LANCZOS)
    left = (whole.width - 32) // 2
    assert preparing.to_square(noise(size), 32).tobytes() == whole.crop((left, 0, left + 32, 32)).tobytes()


SCRIPT = """
from pathlib import Path
from PIL import Image
from chameleon_jax.config import PreprocessingConfig
from chameleon_jax.document import to_rgb
from chameleon_jax.tokens.image import to_square

def resident(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) << 10

def peak_of(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) >> 20

for size in ((1, 2_000_000), (2_000_000, 1)):
    for fit in ("crop", "pad"):
        print(peak_of(lambda: to_square(Image.new("RGB", size, "red"), 512, PreprocessingConfig(fit=fit))))
photo = Image.new("RGBA", (8000, 6000), (10, 20, 30, 40))  # 183 MiB
for style in ("meta", "huggingface"):
    print(peak_of(lambda: to_rgb(photo, style)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory where Linux tells it")
def test_memory_is_bounded_by_what_is_kept():
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    *strips, meta, huggingface = map(int, output.split())
    assert max(strips) < 128  # MiB, most of it Pillow's weights; resizing the whole strip would take a TiB
    assert max(meta, huggingface) < 183 + 64  # the result and a little more
