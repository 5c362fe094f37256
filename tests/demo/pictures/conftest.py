"""A few dozen of OpenMoji's pictures: hands, mechanics, food, animals."""

from __future__ import annotations

import pytest

from data_pipeline.datasets import openmoji

THINGS = {"1F44B", "1F44D", "1F9D1-200D-1F527", "2615", "1F375", "1F353", "1F34E", "1F34C", "1F40D", "1F418"}


@pytest.fixture(scope="module")
def few_pictures():
    """For what is built meanwhile."""
    few = {name: path for name, path in openmoji.svg_files().items() if openmoji.family_of(name) in THINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "svg_files", lambda: few)
        yield few
