"""Documents about OpenMoji say what is true of their pictures, and are about all of them equally."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import pytest

from chameleon_jax.config import ConfigError, from_dict
from data_pipeline.datasets.languages import LANGUAGES
from data_pipeline.datasets.openmoji_documents import (
    EmojiEditsSource,
    EmojiNamesSource,
    EmojiQuestionsSource,
    EmojiStoriesSource,
    EmojiTranslationsSource,
    pictures_of,
)
from data_pipeline.datasets.openmoji_stories import STORIES
from data_pipeline.records import Picture, Record
from data_pipeline.sources import SourceConfig

KINDS = (EmojiNamesSource, EmojiQuestionsSource, EmojiEditsSource, EmojiTranslationsSource, EmojiStoriesSource)
pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, few_pictures) -> str:
    """Where they are built of those few: other tests build all of them in the folder of the session."""
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def by_name(datasets, few_pictures) -> dict[str, dict]:
    return {emoji.picture.name: emoji._asdict() for emoji in pictures_of("train", 64, datasets).all}


def first_picture(record: Record) -> Picture:
    return record.pictures[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_there_equally_often(kind, datasets):
    once = [first_picture(record).name for record in kind().records(datasets)]
    assert len(set(once)) == len(once) > 5
    twice = collections.Counter(first_picture(record).name for record in kind(count=2 * len(once)).records(datasets))
    assert twice == dict.fromkeys(once, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_document_depends_on_its_number_and_the_seed(kind, datasets):
    source = kind(count=2500)
    (*_, last) = source.shards(datasets)
    assert (last.begin, last.end) == (2000, 2500)
    whole = list(source.records(datasets))
    assert list(source.read(last, datasets)) == whole[2000:]
    other = list(dataclasses.replace(source, seed=1).records(datasets))
    assert [record.segments for record in other] != [record.segments for record in whole]


def test_names_are_those_of_the_picture(datasets, by_name):
    languages, orders = collections.Counter(), collections.Counter()
    for record in EmojiNamesSource(count=4000).records(datasets):
        first, second = record.segments
        orders[isinstance(first, Picture)] += 1
        names = by_name[first_picture(record).name]["names"]
        if isinstance(first, Picture):
            label, name = re.fullmatch(r" (\S+): (.+)\.", second, re.DOTALL).groups()
            (language,) = [language for language, own in LANGUAGES.items() if own == label]
            assert names[language] == name
            languages[language] += 1
        else:
            assert first.removesuffix(":") in names.values()
    assert set(languages) == set(LANGUAGES)
    total = sum(languages.values())
    assert languages["en"] / total == pytest.approx(0.3, abs=0.04)
    for language in LANGUAGES.keys() - {"en"}:
        assert languages[language] / total == pytest.approx(0.7 / 13, abs=0.02)
    assert orders[True] / 4000 == pytest.approx(0.5, abs=0.04)


def test_shares_of_english_and_of_pictures_first_can_be_set(datasets):
    for record in EmojiNamesSource(count=200, english=1.0, image_first=1.0).records(datasets):
        assert record.segments[1].startswith(" English: ")
    drawn = EmojiNamesSource(count=200, english=0.0, image_first=0.0).records(datasets)
    assert all(isinstance(record.segments[0], str) for record in drawn)
    with pytest.raises(ConfigError, match=r"english = 1\.5: must be from 0 to 1"):
        EmojiNamesSource(english=1.5)


def test_a_picture_can_be_named_in_several_languages(datasets, by_name):
    own = {label: language for language, label in LANGUAGES.items()}
    firsts = collections.Counter()
    for record in EmojiNamesSource(count=300, image_first=1.0, english=0.5, languages=3).records(datasets):
        picture, text = record.segments
        names = by_name[picture.name]["names"]
        labels = re.findall(rf" ({'|'.join(own)}): ", text)
        assert len(set(labels)) == len(labels) == min(3, len(names))
        assert text == "".join(f" {label}: {names[own[label]]}." for label in labels)
        firsts[labels[0]] += 1
    assert firsts["English"] / 300 == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ConfigError, match="languages = 0: must be at least 1"):
        EmojiNamesSource(languages=0)


def test_pictures_of_families_can_be_left_out(datasets, by_name):
    sizes = collections.Counter(emoji["family"] for emoji in by_name.values())
    found = {first_picture(record).name for record in EmojiNamesSource(families=False).records(datasets)}
    assert found == {name for name, emoji in by_name.items() if sizes[emoji["family"]] == 1}
    assert 0 < len(found) < len(by_name)


def test_answers_are_right(datasets, by_name):
    asked = collections.Counter()
    for record in EmojiQuestionsSource(count=600).records(datasets):
        picture, text = record.segments
        fact, answer = re.fullmatch(r" (.+): (.+)\.", text).groups()
        emoji = by_name[picture.name]
        asked[fact] += 1
        if fact == "Skin tone":
            assert f"{answer.split(' and ')[0]} skin tone" in emoji["names"]["en"]
        elif fact == "Group":
            assert answer == emoji["group"]
        else:
            assert answer == emoji["gender"]
    assert min(asked[fact] for fact in ("Skin tone", "Gender", "Group")) > 20


def test_edits_change_what_they_say_and_nothing_else(datasets, by_name):
    seen = collections.Counter()
    for record in EmojiEditsSource(count=600).records(datasets):
        before, text, after = record.segments
        one, other = by_name[before.name], by_name[after.name]
        assert one["code_points"] != other["code_points"]
        if tone := re.fullmatch(r" with (.+) skin:", text):
            assert one["family"] == other["family"]
            assert other["tone"] in (tone[1].replace(" and ", ","), f"{tone[1]},{tone[1]}")
        else:
            assert re.fullmatch(r" as a (.+):", text)[1] == other["gender"] != one["gender"]
            assert one["tone"] == other["tone"]
            words = [set(emoji["names"]["en"].split()) - {"man", "woman", "person"} for emoji in (one, other)]
            assert words[0] == words[1]
        seen[text.split()[0]] += 1
    assert min(seen["with"], seen["as"]) > 100


def test_translations_name_the_same_picture(datasets, by_name):
    for record in EmojiTranslationsSource(count=300).records(datasets):
        before, picture, after = record.segments
        names = by_name[picture.name]["names"]
        label, name = re.fullmatch(r" (\S+): (.+)\.", after, re.DOTALL).groups()
        (language,) = [language for language, own in LANGUAGES.items() if own == label]
        assert names[language] == name
        assert before.removesuffix(":") in [own for other, own in names.items() if other != language]


def test_stories_show_what_they_name(datasets, by_name):
    for pictures in (2, 3, 9):
        for record in EmojiStoriesSource(count=100, pictures=pictures).records(datasets):
            theme, *rest = record.segments
            words = STORIES[theme.removesuffix(": ")]
            shown = [by_name[picture.name] for picture in rest[::2]]
            assert 2 <= len({emoji["code_points"] for emoji in shown}) == len(shown) <= pictures
            for emoji, text in zip(shown, rest[1::2], strict=True):
                word = words[emoji["family"]] or emoji["names"]["en"]
                assert text in (f" {word}, ", f" {word}.")
            assert rest[-1].endswith(".")


def test_held_out_pictures_are_in_no_document(datasets):
    held_out = {emoji.picture.data for split in ("test", "novel") for emoji in pictures_of(split, 64, datasets).all}
    for kind in KINDS:
        shown = {picture.data for record in kind(count=500).records(datasets) for picture in record.pictures}
        assert not shown & held_out, kind
    test = list(EmojiNamesSource(split="test").records(datasets))
    assert {picture.data for record in test for picture in record.pictures} < held_out


def test_documents_at_another_resolution(datasets):
    large = next(iter(EmojiNamesSource(resolution=128).records(datasets)))
    assert first_picture(large).open().size == (128, 128)
    small = next(iter(EmojiNamesSource().records(datasets)))
    assert first_picture(small).open().size == (64, 64)


def test_bad_values_are_named(datasets):
    with pytest.raises(ConfigError, match="split = 'validation': openmoji has train, test, novel"):
        EmojiNamesSource(split="validation").shards(datasets)
    with pytest.raises(ConfigError, match="pictures = 1: must be at least 2"):
        EmojiStoriesSource(pictures=1)
    with pytest.raises(ConfigError, match="resolution = 100"):
        from_dict(SourceConfig, {"kind": "emoji_names", "resolution": 100})
    with pytest.raises(ConfigError, match="split = 'novel': has no pictures for emoji_edits"):
        EmojiEditsSource(split="novel").shards(datasets)


def test_every_story_has_a_word_for_each_picture():
    """In the whole of OpenMoji, of which the other tests have a part."""
    from data_pipeline.datasets.openmoji import family_of

    assert len(STORIES) > 30
    for theme, words in STORIES.items():
        assert len(words) >= 8, theme
        assert all(family_of(point) == point for point in words), theme
        spelled = [word for word in words.values() if word]
        assert len(set(spelled)) == len(spelled), theme
        assert np.all([word == word.strip() for word in spelled])
