"""Pictures of a text by the official client."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import openai
import pytest
from PIL import Image
from running import CONFIG, GENERATION, running, small_model
from tiny_models import random_picture

from chameleon_jax.chameleon import CannotDraw
from chameleon_jax.generation.guidance import contexts
from chameleon_jax.serving.service import Service

DRAWING = dataclasses.replace(GENERATION, mode="image", max_images=None, seed=6)


def pixels(b64: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(b64))).tobytes()


def test_pictures_are_those_of_the_library(client, model):
    for asked, changes in (
        ({}, {}),
        ({"guidance_scale": 1.0}, {"text_guidance": 1.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"image": dataclasses.replace(DRAWING.image, temperature=0.5, top_p=0.9)}),
    ):
        wanted = model.generate("A seven", dataclasses.replace(DRAWING, **changes), n=2)
        found = client.images.generate(
            model="tiny", prompt="A seven", n=2, size="16x16", response_format="b64_json",
            extra_body={"seed": 6, **asked},
        )  # fmt: skip
        assert [pixels(each.b64_json) for each in found.data] == [answer.pictures[0].tobytes() for answer in wanted]
        assert (found.usage.input_tokens, found.usage.output_tokens) == (len(wanted[0].prompt_ids), 10)
        assert (found.size, found.output_format) == ("16x16", "png")


def test_negative_prompt_takes_the_place_of_nothing(client, model, server):
    asked = {"model": "tiny", "prompt": "A seven", "extra_body": {"seed": 6, "guidance_scale": 3.0}}
    plain, same, other = (
        pixels(
            client.images.generate(
                **{**asked, "extra_body": {**asked["extra_body"], "negative_prompt": negative}}
            ).data[0].b64_json
        )
        for negative in ("", "A seven", "three")
    )  # fmt: skip
    off = pixels(client.images.generate(**{**asked, "extra_body": {"seed": 6, "guidance_scale": 1.0}}).data[0].b64_json)
    assert same == off  # guided away from itself
    assert len({plain, other, off}) == 3


def test_stream_gives_previews_and_the_picture(client):
    asked = {"model": "tiny", "prompt": "A seven", "extra_body": {"seed": 6}}
    whole = client.images.generate(**asked)
    *partial, completed = client.images.generate(**asked, stream=True, partial_images=1)
    assert all(event.type == "image_generation.partial_image" for event in partial)
    assert completed.type == "image_generation.completed"
    assert pixels(completed.b64_json) == pixels(whole.data[0].b64_json)
    assert completed.usage.output_tokens == whole.usage.output_tokens


def test_other_forms_of_files(client):
    for form in ("jpeg", "webp"):
        found = client.images.generate(model="tiny", prompt="A", output_format=form, output_compression=80)
        assert Image.open(io.BytesIO(base64.b64decode(found.data[0].b64_json))).format == form.upper()


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"size": "1024x1024"}, 400, "size = '1024x1024': this model draws 16x16"),
        ({"response_format": "url"}, 400, "response_format = 'url'"),
        ({"n": 9}, 400, "n = 9: at most 8"),
        ({"extra_body": {"guidance_scale": -1}}, 400, "guidance_scale = -1"),
        ({"extra_body": {"negative_prompt": "a" * 400}}, 400, "negative prompt has"),
        ({"prompt": "a" * 400}, 400, "context_length"),
        ({"background": "transparent"}, 400, "background = 'transparent'"),
    ],
)
def test_what_cannot_be_asked(client, asked, status, said):
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(**{"model": "tiny", "prompt": "A", **asked})
    assert caught.value.status_code == status
    assert said in caught.value.body["message"]


def file_of(number: int) -> tuple[str, bytes, str]:
    file = io.BytesIO()
    random_picture(number).save(file, "PNG")
    return "picture.png", file.getvalue(), "image/png"


def test_edits_need_a_model_that_was_trained_to(client, model):
    with pytest.raises(openai.UnprocessableEntityError, match="start the server with --edits"):
        client.images.edit(model="tiny", image=file_of(1), prompt="Make it blue")
    with running(model, dataclasses.replace(CONFIG, edits=True)) as other, other.client() as editor:
        found = editor.images.edit(
            model="tiny", image=[file_of(1), file_of(2)], prompt="Make it blue", n=2, extra_body={"seed": 6}
        )
        wanted = model.generate([random_picture(1), random_picture(2), "Make it blue"], DRAWING, n=2)
        assert [pixels(each.b64_json) for each in found.data] == [answer.pictures[0].tobytes() for answer in wanted]
        for asked, said in (
            ({"image": ("a.png", b"nothing", "image/png")}, "not a picture"),
            ({"mask": file_of(2)}, "only image is a file"),
            ({"extra_body": {"seed": "x"}}, "seed = 'x': must be a valid integer"),
            ({"extra_body": {"seed": "[" * 100_000}}, "must be a valid integer"),
            ({"extra_body": {"negative_prompt": "b"}}, "prompt without pictures"),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                editor.images.edit(**{"model": "tiny", "image": file_of(1), "prompt": "A", **asked})
            assert caught.value.status_code in (400, 422)
            assert said in caught.value.body["message"]


def test_model_that_cannot_draw_says_why():
    with pytest.raises(CannotDraw):
        Service(small_model(draws=False), dataclasses.replace(CONFIG, generation=DRAWING), "tiny")
    with running(small_model(draws=False)) as server, server.client() as client:
        for call in (
            lambda: client.images.generate(model="tiny", prompt="A"),
            lambda: client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "a"}], modalities=["text", "image"]
            ),
        ):
            with pytest.raises(openai.UnprocessableEntityError, match="output layer was never trained on pictures"):
                call()
        assert client.models.retrieve("tiny").output_modalities == ["text"]
        found = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
        assert isinstance(found.choices[0].message.content, str)


def test_guidance_away_from_a_text_is_by_hand(model):
    """The engine draws with a negative prompt what the formula gives for its three readings."""
    vocabulary = model.vocabulary
    ids = np.array([vocabulary.bos, *model.encode("A seven"), vocabulary.begin_image], np.int32)
    negative = model.encode("three")
    kinds, prompts, scales = contexts(ids, 3.0, 1.2, vocabulary, negative)
    assert (kinds, scales) == (("nothing",), (3.0, 3.0))
    np.testing.assert_array_equal(prompts[0], [vocabulary.bos, *negative, vocabulary.begin_image])
