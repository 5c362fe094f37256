"""`chameleon init` and `chameleon run`: from a folder of one's own to a model."""

from __future__ import annotations

from chameleon_jax.config.reading import config, require


@config
class InitCommand:
    """`chameleon init`: looks at a folder and writes the four YAML files that make a model of it."""

    output: str
    """Folder for the YAML files, and for all that `chameleon run` makes of them. Must be new, empty, or written by this
    command and not edited since."""


@config
class RunCommand:
    """`chameleon run`: all stages of a folder that `chameleon init` wrote, then a page."""

    fresh: bool = False
    """Redo everything instead of reusing finished stages."""
    samples: int = 12
    """Held-out documents on the page."""

    def __post_init__(self):
        require(self.samples > 0, "samples", self.samples, "must be at least 1")
