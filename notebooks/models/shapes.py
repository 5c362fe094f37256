"""Writes the documents that the notebooks' model learns from: coloured shapes, and what can be said of them.

    python notebooks/models/shapes.py out/shapes/data

A scene is one to three shapes in different corners of a picture. Its documents are captions, conversations about it,
stories in which shapes come one after another, and conversations in which pictures are drawn and changed. They are made
of chance alone, the same ones every time. No picture shows an orange star together with a green triangle, so that those
two can be asked for as something new.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 48, 49), "orange": (240, 147, 43), "yellow": (246, 213, 60), "green": (46, 160, 88),
    "blue": (48, 105, 214), "purple": (136, 66, 170),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("Nothing", "One", "Two", "Three")
PAPER = (250, 248, 242)
SIDE, ZOOM = 48, 4  # pixels of a picture, and how many times as large it is drawn
RADIUS = 8.5
NEVER_TOGETHER = {"orange star", "green triangle"}

FACTS = (
    "Red and yellow make orange.", "Blue and yellow make green.", "Red and blue make purple.",
    "A triangle has three corners.", "A square has four corners.", "A star has five points.",
    "A circle has no corners.",
)  # fmt: skip


class Shape(NamedTuple):
    colour: str
    kind: str
    corner: int  # number of CORNERS

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def article(self) -> str:
        return f"an {self}" if self.colour == "orange" else f"a {self}"


Scene = tuple[Shape, ...]  # in the order of their corners


def random_shape(rng: random.Random, corner: int) -> Shape:
    return Shape(rng.choice(list(COLOURS)), rng.choice(SHAPES), corner)


def allowed(scene: Scene) -> bool:
    names = [str(shape) for shape in scene]
    return len(set(names)) == len(names) and not set(names) >= NEVER_TOGETHER


def random_scene(rng: random.Random, count: int) -> Scene:
    while True:
        scene = tuple(random_shape(rng, corner) for corner in sorted(rng.sample(range(4), count)))
        if allowed(scene):
            return scene


def draw(scene: Scene) -> Image.Image:
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), PAPER)
    pen = ImageDraw.Draw(image)
    for shape in scene:
        x, y = (SIDE * ZOOM * (1 + 2 * place) / 4 for place in (shape.corner % 2, shape.corner // 2))
        radius, colour = RADIUS * ZOOM, COLOURS[shape.colour]
        if shape.kind == "circle":
            pen.circle((x, y), radius, colour)
        elif shape.kind == "square":
            pen.regular_polygon((x, y, 1.25 * radius), 4, fill=colour)
        elif shape.kind == "triangle":
            pen.regular_polygon((x, y + 0.15 * radius, 1.3 * radius), 3, fill=colour)
        else:
            radii = (1.35 * radius, 0.6 * radius)
            corners = [(radii[number % 2], math.pi * number / 5) for number in range(10)]
            pen.polygon([(x + r * math.sin(angle), y - r * math.cos(angle)) for r, angle in corners], colour)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def caption(scene: Scene, rng: random.Random) -> str:
    """What a scene shows, beginning with 'a' or 'an' and without a full stop."""
    if len(scene) == 1:
        (shape,) = scene
        return f"{shape.article} at the {CORNERS[shape.corner]}" if rng.random() < 0.5 else shape.article
    if len(scene) == 3:
        return f"{scene[0].article}, {scene[1].article} and {scene[2].article}"
    first, second = scene
    relation = relation_of(first, second)
    if relation is None:
        return f"{first.article} at the {CORNERS[first.corner]} and {second.article} at the {CORNERS[second.corner]}"
    if rng.random() < 0.5:
        first, second, relation = second, first, relation_of(second, first)
    return f"{first.article} {relation} {second.article}"


def relation_of(first: Shape, second: Shape) -> str | None:
    if first.corner // 2 == second.corner // 2:
        return "to the left of" if first.corner < second.corner else "to the right of"
    if first.corner % 2 == second.corner % 2:
        return "above" if first.corner < second.corner else "below"
    return None


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Questions about a scene with their answers, in random order."""
    found = [
        ("What do you see?", sentence(caption(scene, rng))),
        ("How many shapes are there?", f"{NUMBERS[len(scene)]}."),
    ]
    corner = rng.randrange(4)
    there = [shape for shape in scene if shape.corner == corner]
    found.append((f"What is at the {CORNERS[corner]}?", sentence(there[0].article) if there else "Nothing."))
    shape = rng.choice(scene)
    asked = rng.choice((shape, random_shape(rng, 0)))
    found.append((f"Is there {asked.article}?", "Yes." if str(asked) in map(str, scene) else "No."))
    if sum(other.kind == shape.kind for other in scene) == 1:
        found.append((f"What colour is the {shape.kind}?", f"{shape.colour.capitalize()}."))
    if sum(other.colour == shape.colour for other in scene) == 1:
        found.append((f"Which shape is {shape.colour}?", f"The {shape.kind}."))
    for first, second in itertools.permutations(scene, 2):
        relation = relation_of(first, second)
        if relation and sum(relation_of(other, second) == relation for other in scene) == 1:
            found.append((f"What is {relation} the {second}?", sentence(first.article)))
            break
    rng.shuffle(found)
    return found


def change(scene: Scene, rng: random.Random) -> tuple[str, Scene]:
    """A wish for another picture, and that picture."""
    while True:
        kind, number = rng.choice(("colour", "colour", "add", "remove")), rng.randrange(len(scene))
        shape, rest = scene[number], scene[:number] + scene[number + 1 :]
        if kind == "colour":
            other = shape._replace(colour=rng.choice(list(COLOURS)))
            wish, after = f"Make the {shape} {other.colour}.", (*rest, other)
        elif kind == "add":
            other = random_shape(rng, rng.choice([c for c in range(4) if c not in [s.corner for s in scene]]))
            wish, after = f"Add {other.article} at the {CORNERS[other.corner]}.", (*scene, other)
        else:
            wish, after = f"Take the {shape} away.", rest
        after = tuple(sorted(after, key=lambda each: each.corner))
        if 1 <= len(after) <= 3 and after != scene and allowed(after):
            return wish, after


class Writer:
    """Writes documents as JSON lines, and their pictures beside them."""

    def __init__(self, folder: Path, prefix: str):
        self.folder, self.prefix, self.pictures = folder, prefix, {}

    def picture(self, scene: Scene) -> dict[str, str]:
        if scene not in self.pictures:
            name = f"pictures/{self.prefix}{len(self.pictures):05d}.png"
            draw(scene).save(self.folder / name)
            self.pictures[scene] = {"image": name}
        return self.pictures[scene]

    def lines(self, name: str, documents: list) -> None:
        text = "".join(f"{json.dumps(document)}\n" for document in documents)
        (self.folder / f"{self.prefix}{name}.jsonl").write_text(text, encoding="utf-8")


def write(folder: Path, prefix: str, seed: int, size: int) -> None:
    """Writes all kinds of documents.

    Args:
      size: number of scenes with captions and questions; of the other kinds there are fewer.
    """
    rng, writer = random.Random(seed), Writer(folder, prefix)
    scenes = [random_scene(rng, rng.choice((1, 2, 2, 3))) for _ in range(size)]
    captions = [[f"{sentence(caption(scene, rng))} ", writer.picture(scene)] for scene in scenes]
    captions = [pair if rng.random() < 0.6 else [pair[1], f" {pair[0].strip()}"] for pair in captions]

    def turn(prompt: list | str, answer: list | str) -> dict:
        return {"prompt": prompt, "answer": answer}

    asked = []
    for scene in scenes:
        (first, answer), *others = questions(scene, rng)[:5]
        asked.append([turn([writer.picture(scene), first], answer), *(turn(*each) for each in others)])

    drawn = []
    for _ in range(size * 2 // 3):
        scene = random_scene(rng, rng.choice((1, 2, 2, 3)))
        turns = [turn(f"Draw {caption(scene, rng)}.", [writer.picture(scene)])]
        for _ in range(rng.choice((1, 2))):
            wish, scene = change(scene, rng)
            turns.append(turn(wish, [writer.picture(scene)]))
        drawn.append([*turns, *(turn(*each) for each in questions(scene, rng)[:2])])

    stories = []
    for _ in range(size // 3):
        scene = list(random_scene(rng, 3))
        rng.shuffle(scene)
        story = [f"{sentence(scene[0].article)} ", writer.picture((scene[0],))]
        for number in (2, 3):
            there = tuple(sorted(scene[:number], key=lambda each: each.corner))
            story += [f" Then comes {scene[number - 1].article}. ", writer.picture(there)]
        stories.append([*story, " Now there are three."])

    writer.lines("captions", captions)
    writer.lines("questions", [{"turns": turns} for turns in asked])
    writer.lines("drawings", [{"turns": turns} for turns in drawn])
    writer.lines("stories", stories)
    writer.lines("facts", [[" ".join(rng.sample(FACTS, 4))] for _ in range(size // 10)])


EXAMPLES = {
    "circle": ("green circle",), "circle_and_star": ("red circle", "", "", "yellow star"),
    "square_and_triangle": ("", "", "blue square", "orange triangle"),
    "star_and_square": ("purple star", "blue square"), "three": ("yellow triangle", "red square", "", "green circle"),
    "two_stars": ("", "blue star", "", "red star"),
}  # fmt: skip
"""The notebooks' pictures: what is in their corners."""


def write_examples(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, corners in EXAMPLES.items():
        scene = tuple(Shape(*each.split(), corner) for corner, each in enumerate(corners) if each)
        draw(scene).save(folder / f"{name}.png")


def main() -> None:
    folder = Path(sys.argv[1])
    write_examples(Path(__file__).parents[1] / "pictures")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    write(folder, "", seed=0, size=5000)
    write(folder, "held_out_", seed=1, size=200)


if __name__ == "__main__":
    main()
