"""What counts as right, with answers made by hand instead of a model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from chameleon_jax.config import ConfigError, GenerationConfig, PicturesEvaluationConfig
from chameleon_jax.demo.pictures import evaluate
from chameleon_jax.demo.pictures.evaluate import Pictures, ask, ask_names, draw, draw_edits
from data_pipeline.datasets.openmoji_documents import tone_edit

CONFIG = PicturesEvaluationConfig()


class Answers:
    """Stands for a model: gives the answers that it was made with."""

    def __init__(self, *answers):
        self.answers = answers

    def generate_many(self, documents, config):
        self.documents, self.config = documents, config
        return [[answer] for answer in self.answers]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, few_pictures) -> Pictures:
    return Pictures(str(tmp_path_factory.mktemp("datasets")), 64, CONFIG)


def number_of(pictures: Pictures, name: str) -> int:
    return next(number for number, emoji in enumerate(pictures.all) if emoji.names["en"] == name)


def test_every_picture_is_known_to_the_judge_and_in_one_split(pictures, few_pictures):
    assert len(pictures.all) == len(few_pictures)
    assert sorted(pictures.train + pictures.test + pictures.novel) == list(range(len(pictures.all)))
    assert all(pictures.all[number].tone for number in pictures.test)


def test_drawing_is_right_if_the_nearest_picture_is_the_one_asked_for(pictures):
    dark, light, tea = (
        number_of(pictures, name)
        for name in ("thumbs up dark skin tone", "thumbs up light skin tone", "teacup without handle")
    )
    model = Answers(*(pictures.all[number].image for number in (dark, light, tea)))
    drawings = draw(model, pictures, [(["thumbs up:"], dark, "en")] * 3, GenerationConfig(mode="image"))
    assert [each.nearest for each in drawings] == [dark, light, tea]
    assert [each.right for each in drawings] == [True, False, False]
    assert [each.right_family for each in drawings] == [True, True, False]


def test_picture_of_the_same_name_is_right_where_names_are_asked_for(pictures, monkeypatch):
    dark, light = (number_of(pictures, f"thumbs up {tone} skin tone") for tone in ("dark", "light"))
    for number in (dark, light):
        monkeypatch.setitem(pictures.all[number].names, "de", "daumen hoch")
    model = Answers(pictures.all[light].image)
    asked = [(["daumen hoch:"], dark, "de")]
    assert draw(model, pictures, asked, CONFIG.drawing)[0].right
    assert not draw(model, pictures, asked, CONFIG.drawing, by_name=False)[0].right


def test_edits_have_options_of_their_own(pictures):
    others = {pictures.all[number].family for number in pictures.train}
    asked = [pictures.all[number] for number in pictures.test if pictures.all[number].family in others]
    config = dataclasses.replace(CONFIG, editing=GenerationConfig(mode="image", text_guidance=2.5))
    model = Answers(*(emoji.image for emoji in asked))
    drawings = draw_edits(model, pictures, config, np.random.default_rng(0))
    assert model.config.text_guidance == 2.5
    assert [document[1] for document in model.documents] == [tone_edit(emoji.tone) for emoji in asked]
    assert drawings
    assert all(each.right for each in drawings)
    with pytest.raises(ConfigError, match=r"editing\.mode = 'text': must be image"):
        dataclasses.replace(CONFIG, editing=GenerationConfig(mode="text"))


def test_caption_is_right_to_the_letter(pictures):
    texts = (" hot beverage.", " hot beverage", " a hot beverage.", " hot")
    captions = ask(Answers(*texts), [([], {"hot beverage"}, "en")] * 4)
    assert [each.right for each in captions] == [True, True, False, False]


def test_only_the_first_of_several_names_counts(pictures):
    """Documents may name a picture in several languages, so a model goes on with others; names have full stops too."""
    texts = (" Mrs. Claus. Français: mère Noël. De", " Mrs. Cl. Français: mère Noël.", " Mrs. Claus. French")
    captions = ask(Answers(*texts), [([], {"Mrs. Claus"}, "en")] * 3)
    assert [each.right for each in captions] == [True, False, False]
    assert captions[0].text == "Mrs. Claus"


def test_caption_in_another_tone_names_the_right_thing(pictures):
    number = number_of(pictures, "thumbs up dark skin tone")
    texts = (" thumbs up dark skin tone.", " thumbs up light skin tone.", " pizza.")
    captions = ask_names(Answers(*texts), pictures, [(number, "en")] * 3)
    assert [each.right for each in captions] == [True, False, False]
    assert [each.right_family for each in captions] == [True, True, False]


def test_edits_ask_for_test_pictures_from_training_pictures_of_their_family(pictures, monkeypatch):
    monkeypatch.setattr(evaluate, "draw", lambda model, pictures, asked, config, by_name: asked)
    train = {pictures.all[number].image.tobytes(): pictures.all[number] for number in pictures.train}
    asked = evaluate.draw_edits(None, pictures, CONFIG, evaluate.np.random.default_rng(0))
    assert [number for _, number, _ in asked] == pictures.test
    for (source, text), number, _ in asked:
        assert train[source.tobytes()].family == pictures.all[number].family
        assert text == f" with {pictures.all[number].tone} skin:"
