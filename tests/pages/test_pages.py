"""Pages: readable in light and in dark, complete in one file."""

from __future__ import annotations

import re

import numpy as np
import pytest
from html_page import check_page
from tiny_models import random_picture

from chameleon_jax.evaluation.image_tokenizer import Measured
from chameleon_jax.pages import charts
from chameleon_jax.pages.parts import Section, document, img, page, style_sheet, table
from chameleon_jax.pages.reconstructions import reconstructions_page

LINES = [{"step": step, "text_loss": 6 / step, "image_loss": 7 / step, "psnr_db": 20 + step, "perplexity": 8.0 * step,
          "held_out": {"a & b": {"text_loss": 6.5 / step}, "c": {"text_loss": 6.1 / step, "image_loss": 7.5 / step}}}
         for step in range(1, 9)]  # fmt: skip


def schemes() -> list[dict[str, str]]:
    """The colours of the light and of the dark scheme."""
    light, dark = re.findall(r":root \{(.*?)\}", style_sheet(), re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w+)", rules)) for rules in (light, dark)]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    colours = schemes()[scheme]
    behind = {
        "ink": ("paper", "card", "leaf-soft", "amber-soft", "line"),
        "soft": ("paper", "card"),
        "leaf": ("paper", "card", "leaf-soft"),
        "amber": ("paper", "amber-soft"),
        "red": ("red-soft",),
    }
    for text, grounds in behind.items():
        for ground in grounds:
            darker, lighter = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{text} on {ground}"


def test_both_schemes_have_the_same_colours_and_the_dark_one_is_dark():
    light, dark = schemes()
    assert light.keys() == dark.keys()
    assert luminance(light["paper"]) > 0.9
    assert luminance(dark["paper"]) < 0.02


def test_a_page_of_everything_is_complete_and_escaped():
    body = (
        document(["a <b> & ", random_picture(1)], "given")
        + img(random_picture(2), 'a "red" <circle>', kind="bad")
        + table(("source", "tokens", "share"), [("a & b", "1,200", "10 %"), ("  part", "30", "")])
        + charts.loss_curves(LINES, [("a & b", "text_loss", "a & b, text"), ("c", "image_loss", "c, pictures")])
        + charts.tokenizer_curve(LINES)
        + charts.code_use(np.array([2, 0, 0, 1]))
    )
    shown = check_page(page("Title & more", "<p>lead</p>", [Section("One <two>", "", body)], "footer"))
    assert shown.text_of("h2") == ["One <two>"]
    assert [each["alt"] for each in shown.all("img")] == ["picture, given", 'a "red" <circle>']
    assert len(shown.all("svg")) == 6
    assert [each.get("class") for each in shown.all("th")] == [None, "number", "number"]
    assert [text for tag, text in shown.texts if tag == "td"] == ["a & b", "1,200", "10 %", "  part", "30"]


def test_one_tokenizer_makes_something_of_pictures_and_two_make_it():
    for names, said in (
        (["a"], "<code>a</code> makes of 60 pictures"),
        (["a", "b"], "<code>b</code> make of 60 pictur"),
    ):
        measured = Measured(60, [{"ssim": 0.9}] * len(names), [np.ones(4, np.int64)] * len(names), [], [])
        assert said in reconstructions_page(measured, names, "photos")


def test_folders_of_tokenizers_are_named_by_what_tells_them_apart():
    for names, labels in (
        (["out/demo/image_tokenizer"], ["image_tokenizer"]),
        (["out/a/image_tokenizer/", "out/b/image_tokenizer"], ["a/image_tokenizer", "b/image_tokenizer"]),
        (["a/b", "b"], ["a/b", "b"]),
        (["hf://org/one", "hf://org/two@main"], ["one", "two@main"]),
    ):
        measured = Measured(60, [{"ssim": 0.9}] * len(names), [np.ones(4, np.int64)] * len(names), [], [])
        shown = check_page(reconstructions_page(measured, names, "photos"))
        assert shown.text_of("th") == ["figure", *labels]


def test_small_pictures_are_enlarged_by_whole_numbers_and_large_ones_fitted():
    def shown(width, height, side):
        found = re.search(
            'class="(.*?)".* width="(.*?)" height="(.*?)"', img(random_picture(1, (width, height)), "x", side)
        )
        return found[1], int(found[2]), int(found[3])

    assert shown(32, 24, 128) == ("enlarged", 128, 96)
    assert shown(48, 48, 128) == ("enlarged", 96, 96)
    assert shown(100, 80, 128) == ("", 100, 80)
    assert shown(512, 256, 128) == ("", 128, 64)
    assert shown(1, 1000, 128) == ("", 1, 128)


def test_labels_of_charts_can_be_read_on_a_phone():
    """358 CSS pixels is what a phone of 390 leaves; the wide form starts at windows of 720."""
    chart = charts.loss_curves(LINES, [("c", "image_loss", "c, held-out pictures")])
    widths = dict(re.findall(r'class="(wide|narrow)".*?viewBox="0 0 ([\d.]+) ', chart, re.DOTALL))
    smallest = min(map(float, re.findall(r"font(?:-size)?: ([\d.]+)px", chart)))
    assert smallest * 358 / float(widths["narrow"]) >= 10
    assert smallest * (720 - 2 * 28) / float(widths["wide"]) >= 10
    assert chart.count("c, held-out pictures") == 2
