"""Measuring image tokenizers."""

from __future__ import annotations

from chameleon_jax.config.reading import config, require


@config
class LPIPSFiles:
    """The two files of LPIPS."""

    vgg: str = ""
    """VGG16 of torchvision: vgg16-397923af.pth."""
    heads: str = ""
    """The learned weights of LPIPS for VGG16: weights/v0.1/vgg.pth of the lpips package."""

    def __post_init__(self):
        for name, other in (("vgg", self.heads), ("heads", self.vgg)):
            require(bool(getattr(self, name)) >= bool(other), name, "", "must be given too; LPIPS needs both files")


@config
class EvaluateImageTokenizerCommand:
    """`chameleon evaluate-image-tokenizer`: measure what an image tokenizer makes of pictures."""

    compare: str = ""
    """A second model, to measure on the same pictures."""
    lpips: LPIPSFiles = LPIPSFiles()
    """Files of LPIPS (Zhang et al. 2018), the distance of pictures as people see them. Default: it is left out."""
    inception: str = ""
    """pytorch-fid's file pt_inception-2015-12-05-6726825d.pth, for rFID: the Fréchet distance between pictures and
    reconstructions. Default: it is left out."""
    count: int = 0
    """Number of pictures to measure, the first ones; 0: all."""
    output: str = ""
    """HTML file for a page with reconstructions side by side. Default: none is written."""
    samples: int = 6
    """Pictures on the page: so many of the worst, and so many at random."""
    json: bool = False
    """One JSON object instead of lines for people."""

    def __post_init__(self):
        require(self.count >= 0, "count", self.count, "must be 0 or more")
        require(self.samples > 0, "samples", self.samples, "must be at least 1")


@config
class CompareOptions:
    """`chameleon compare`: what is no option of generation."""

    prompts: str
    """File of prompts: texts, one a line; or, called .jsonl, JSON lines of texts and pictures, each as for the kind of
    source 'documents'."""


@config
class CompareReportCommand:
    """`chameleon compare report`: count what people said."""

    json: bool = False
    """One JSON object instead of lines for people."""
