"""Documents about OpenMoji's pictures: names in fourteen languages, questions, edits, translations, stories.

The texts are functions and constants, as they are also the prompts by which a model is judged.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from chameleon_jax.config.reading import config, require, require_seed
from data_pipeline.datasets import in_turn, open_dataset, shards_of
from data_pipeline.datasets.languages import LANGUAGES
from data_pipeline.datasets.openmoji_stories import STORIES
from data_pipeline.records import Picture, Record, Segment, Shard
from data_pipeline.sources.source import SourceConfig, register_source

QUESTIONS = {"tone": " Skin tone:", "gender": " Gender:", "group": " Group:"}
ADULTS = ("1F468", "1F469", "1F9D1")


def drawing_prompt(name: str) -> str:
    """What stands before a picture of this name, in any language."""
    return f"{name}:"


def caption_prompt(language: str) -> str:
    """What stands between a picture and its name; `language` is a key of `LANGUAGES`."""
    return f" {LANGUAGES[language]}:"


def tone_in_words(tone: str) -> str:
    """A tone as the data set has it, for people: "light and dark" of "light,dark", "dark" of "dark,dark"."""
    return " and ".join(dict.fromkeys(tone.split(",")))


def tone_edit(tone: str) -> str:
    """What stands between a picture and the same in another tone."""
    return f" with {tone_in_words(tone)} skin:"


def gender_edit(gender: str) -> str:
    """What stands between a picture of a person and the same one as a woman, man or person."""
    return f" as a {gender}:"


class Emoji(NamedTuple):
    """An example of the data set `openmoji` that has a name."""

    picture: Picture
    code_points: str
    names: dict[str, str]
    group: str
    family: str
    tone: str
    gender: str

    @property
    def role(self) -> str:
        """The same for woman, man and person of one kind and tone; "" where there are none of these."""
        if not self.gender:
            return ""
        points = ["adult" if point in ADULTS else point for point in self.family.split("-")]
        return f"{'-'.join(points).removesuffix('-200D-2640').removesuffix('-200D-2642')} {self.tone}"


class Pictures:
    """The pictures of a split that have names, and which belong together."""

    def __init__(self, split: str, resolution: int, datasets: str):
        examples = open_dataset(f"openmoji/{resolution}px", split, datasets)
        self.all = [_emoji(example, split) for example in examples if example["names"]["en"]]
        self.families: dict[str, list[Emoji]] = collections.defaultdict(list)
        roles = collections.defaultdict(list)
        for emoji in self.all:
            self.families[emoji.family].append(emoji)
            roles[emoji.role].append(emoji)
        self.edits: dict[str, list[tuple[str, Emoji]]] = {}
        """Code points → what can be asked for with a picture, and what is then to be drawn: it in other tones, or as a
        woman, man or person."""
        for emoji in self.all:
            tones = [(tone_edit(other.tone), other) for other in self.families[emoji.family]
                     if other.tone not in ("", emoji.tone)]  # fmt: skip
            genders = [(gender_edit(other.gender), other) for other in roles[emoji.role]
                       if emoji.role and other.gender != emoji.gender]  # fmt: skip
            if tones or genders:
                self.edits[emoji.code_points] = tones + genders
        known = {emoji.family: emoji for emoji in self.all if not emoji.tone}
        self.stories: dict[str, list[tuple[str, dict[str, Emoji]]]] = collections.defaultdict(list)
        """Code points → the themes of a picture: name, and all its words with their pictures."""
        for theme, words in STORIES.items():
            items = {word or known[point].names["en"]: known[point] for point, word in words.items() if point in known}
            for emoji in items.values():
                if len(items) > 1:
                    self.stories[emoji.code_points].append((theme, items))


def _emoji(example: dict[str, Any], split: str) -> Emoji:
    texts = {name: example[name].decode() for name in ("code_points", "group", "family", "tone", "gender")}
    names = {language: name.decode() for language, name in example["names"].items() if name}
    return Emoji(Picture(f"openmoji {split}, {texts['code_points']}", example["png"]), names=names, **texts)


_known_pictures = functools.lru_cache(maxsize=8)(Pictures)  # for the next shard
_reading = threading.Lock()


def pictures_of(split: str, resolution: int, datasets: str) -> Pictures:
    """The pictures of a split, read once."""
    with _reading:  # once, if several threads begin with it
        return _known_pictures(split, resolution, datasets)


@config
class EmojiSource(SourceConfig):
    """Documents about OpenMoji's pictures: `count` of them, or one for each picture that they can begin with."""

    split: str = "train"
    """Split of the data set, or a slice of one: train, test (new combinations), novel (new things), train[:90%]."""
    resolution: Literal[64, 128] = 64
    """Pixels at which pictures are drawn; image tokenizers with another resolution resize them."""
    seed: int = 0

    stream: ClassVar[int]
    """Number of the kind's stream of random numbers."""

    def __post_init__(self):
        super().__post_init__()
        require_seed(self.seed)

    def shards(self, datasets: str = "") -> list[Shard]:
        usable = self._usable(datasets)
        require(bool(usable), "split", self.split, f"has no pictures for {self.kind}")
        name = f"openmoji/{self.resolution}px"
        return shards_of(name, self.split, datasets, self.count or len(usable))

    def read(self, shard: Shard, datasets: str = "") -> Iterator[Record]:
        """Goes through all usable pictures in a new random order each time, so that each is there equally often."""
        pictures, usable = pictures_of(self.split, self.resolution, datasets), self._usable(datasets)
        for number, place, rng in in_turn(shard, len(usable), self.seed, self.stream):
            segments = tuple(self.document(pictures, usable[place], rng))
            yield Record(str(number), f"{self.kind} {self.split}, document {number}", segments)

    def _usable(self, datasets: str) -> list[Emoji]:
        pictures = pictures_of(self.split, self.resolution, datasets)
        return [emoji for emoji in pictures.all if self.can_use(pictures, emoji)]

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        """Whether a document can be made of a picture."""
        return True

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        """A document about a picture."""
        raise NotImplementedError


@register_source
@config
class EmojiNamesSource(EmojiSource):
    """A picture and its name in a language: the name first, to be drawn, or the picture first, to be named, then in
    several languages if `languages` says so."""

    kind: Literal["emoji_names"] = "emoji_names"
    english: float = 0.3
    """Share of documents in English; the other languages have equal shares of the rest."""
    image_first: float = 0.5
    """Share of documents with the picture first. The language is named in these, so the text differs, and `form.order`
    leaves them as they are."""
    languages: int = 1
    """Names behind a picture that comes first, each in another language, as far as it has names in so many."""
    families: bool = True
    """Also pictures that belong to a family: one thing in several tones of skin, whose pictures teach one another. A
    second source without them shows things that stand alone more often."""
    stream = 10

    def __post_init__(self):
        super().__post_init__()
        for name in ("english", "image_first"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be from 0 to 1")
        require(self.languages > 0, "languages", self.languages, "must be at least 1")

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        return self.families or len(pictures.families[emoji.family]) == 1

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        image_first = rng.random() < self.image_first
        others = [language for language in emoji.names if language != "en"]
        language = "en" if rng.random() < self.english or not others else others[rng.integers(len(others))]
        if image_first:
            more = rng.permutation([each for each in emoji.names if each != language])[: self.languages - 1]
            captions = (f"{caption_prompt(each)} {emoji.names[each]}." for each in (language, *more))
            return [emoji.picture, "".join(captions)]
        return [drawing_prompt(emoji.names[language]), emoji.picture]


@register_source
@config
class EmojiQuestionsSource(EmojiSource):
    """A picture and one fact: tone of skin, gender, or Unicode's group."""

    kind: Literal["emoji_questions"] = "emoji_questions"
    stream = 11

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        return any(getattr(emoji, fact) for fact in QUESTIONS)

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        facts = [fact for fact in QUESTIONS if getattr(emoji, fact)]
        fact = facts[rng.integers(len(facts))]
        return [emoji.picture, f"{QUESTIONS[fact]} {tone_in_words(getattr(emoji, fact))}."]


@register_source
@config
class EmojiEditsSource(EmojiSource):
    """A picture, what to change (tone of skin, or woman, man, person), and the picture with that changed."""

    kind: Literal["emoji_edits"] = "emoji_edits"
    stream = 12

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        return emoji.code_points in pictures.edits

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        edits = pictures.edits[emoji.code_points]
        text, other = edits[rng.integers(len(edits))]
        return [emoji.picture, text, other.picture]


@register_source
@config
class EmojiTranslationsSource(EmojiSource):
    """A name in one language, the picture, and its name in another one."""

    kind: Literal["emoji_translations"] = "emoji_translations"
    stream = 13

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        return len(emoji.names) > 1

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        first, other = rng.choice(list(emoji.names), 2, replace=False)
        return [drawing_prompt(emoji.names[first]), emoji.picture, f"{caption_prompt(other)} {emoji.names[other]}."]


@register_source
@config
class EmojiStoriesSource(EmojiSource):
    """Several pictures of one theme, each with its word in English behind it: "Breakfast: ⟨picture⟩ coffee, …"."""

    kind: Literal["emoji_stories"] = "emoji_stories"
    pictures: int = 3
    """Pictures in a document."""
    stream = 14

    def __post_init__(self):
        super().__post_init__()
        require(self.pictures > 1, "pictures", self.pictures, "must be at least 2")

    def can_use(self, pictures: Pictures, emoji: Emoji) -> bool:
        return emoji.code_points in pictures.stories

    def document(self, pictures: Pictures, emoji: Emoji, rng: np.random.Generator) -> list[Segment]:
        themes = pictures.stories[emoji.code_points]
        theme, items = themes[rng.integers(len(themes))]
        (first,) = [word for word, other in items.items() if other is emoji]
        others = rng.permutation([word for word in items if word != first])
        words = [first, *others[: self.pictures - 1]]
        document: list[Segment] = [f"{theme}: "]
        for number, word in enumerate(words, start=1):
            document += [items[word].picture, f" {word}, " if number < len(words) else f" {word}."]
        return document
