"""What streams is what the whole answer says: characters whole, stop texts never seen, pictures complete."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TEXTS, random_picture, released_json, scrambled_tokenizer, text_tokenizer

from chameleon_jax.generation.events import PictureDone, PictureProgress, PictureStarted, TextPiece
from chameleon_jax.generation.streaming import GREY, DocumentStream, TextStream, preview_of
from chameleon_jax.tokens.text_json import JSONTokenizer
from chameleon_jax.tokens.vocabulary import TEXT

TEXT_TOKENIZERS = {"sentencepiece": text_tokenizer(), "byte-level": JSONTokenizer(released_json())}
TOKENIZER = scrambled_tokenizer()
VOCABULARY = TOKENIZER.vocabulary
NO_PROMPT = np.array([VOCABULARY.bos], np.int32)


def pieces_of(tokenizer):
    """Pieces as a model may draw them, and as texts are encoded."""
    drawn = st.lists(st.integers(0, tokenizer.num_pieces - 1), max_size=30)
    written = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)).map(lambda text: tokenizer.encode(text).tolist())
    return st.lists(st.one_of(drawn, written), max_size=4).map(
        lambda parts: [piece for part in parts for piece in part]
    )


@pytest.mark.parametrize("name", TEXT_TOKENIZERS)
@given(data=st.data())
def test_pieces_of_text_add_up_to_the_whole(name, data):
    tokenizer = TEXT_TOKENIZERS[name]
    pieces = data.draw(pieces_of(tokenizer))
    stream = TextStream(tokenizer)
    streamed = [stream.feed(piece) for piece in pieces]
    whole = tokenizer.decode(pieces)
    assert "".join([*streamed, stream.flush()]) == whole
    # A byte alone is no character: what was given out is the beginning of the whole at any time.
    assert all(whole.startswith("".join(streamed[:size])) for size in range(len(streamed)))


def until_stop(text: str, stops: list[str]) -> str:
    """By hand: reads on character by character until a stop text is complete."""
    for end in range(len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))]
    return text


@pytest.mark.parametrize("name", TEXT_TOKENIZERS)
@given(data=st.data())
def test_nothing_of_a_stop_text_or_behind_it_is_streamed(name, data):
    tokenizer = TEXT_TOKENIZERS[name]
    pieces = data.draw(pieces_of(tokenizer))
    whole = tokenizer.decode(pieces)
    inside = st.integers(0, max(len(whole) - 1, 0)).flatmap(
        lambda start: st.integers(1, 6).map(lambda size: whole[start : start + size] or "x")
    )
    stops = data.draw(st.lists(st.one_of(inside, st.text(min_size=1, max_size=3)), max_size=3))
    stream, streamed = TextStream(tokenizer, stops), ""
    for piece in pieces:
        streamed += stream.feed(piece)
        if stream.stopped:
            break
    else:
        streamed += stream.flush()
    assert streamed == until_stop(whole, stops)
    assert stream.stopped == (streamed != whole or any(stop in whole for stop in stops))


def test_stop_text_across_tokens_and_characters_of_several_bytes():
    tokenizer = TEXT_TOKENIZERS["sentencepiece"]
    stream = TextStream(tokenizer, ["\n数"])
    streamed = [stream.feed(piece) for piece in tokenizer.encode("goats\n字\n数").tolist()]
    assert "".join(streamed) == "goats\n字"
    assert stream.stopped


def answers():
    """Ids of texts, pictures and end-of-turn tokens in any order, with an end of sequence."""
    text = st.lists(st.integers(0, len(VOCABULARY.text_ids) - 1), min_size=1, max_size=12)
    codes = st.lists(st.integers(0, 15), min_size=4, max_size=4)
    part = st.one_of(
        text.map(lambda pieces: VOCABULARY.text_ids[pieces].tolist()),
        codes.map(lambda codes: [VOCABULARY.begin_image, *VOCABULARY.image_ids[codes], VOCABULARY.end_image]),
        st.just([VOCABULARY.end_of_turn]),
    )
    return st.lists(part, max_size=6).map(lambda parts: [*(token for part in parts for token in part), VOCABULARY.eos])


def chunked(ids, cuts) -> list[np.ndarray]:
    return np.split(np.asarray(ids, np.int32), sorted(cut % (len(ids) + 1) for cut in cuts))


def frozen(document: list) -> list:
    return [part if isinstance(part, str) else part.tobytes() for part in document]


@given(ids=answers(), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_document_is_the_same_in_any_chunks(ids, cuts):
    whole = DocumentStream(TOKENIZER, NO_PROMPT)
    list(whole.feed(np.asarray(ids)))
    list(whole.finish())
    stream, events = DocumentStream(TOKENIZER, NO_PROMPT), []
    for chunk in chunked(ids, cuts):
        events += stream.feed(chunk)
    events += stream.finish()
    assert stream.ids == ids
    in_pictures = 6 * sum(not isinstance(part, str) for part in stream.document)
    assert stream.text_tokens == len(ids) - in_pictures
    assert frozen(stream.document) == frozen(whole.document)
    parts: list = []
    for event in events:
        if isinstance(event, TextPiece):
            if parts and isinstance(parts[-1], str):
                parts[-1] += event.text
            else:
                parts.append(event.text)
        elif isinstance(event, PictureDone):
            parts.append(event.picture.tobytes())
    assert parts == frozen(stream.document)
    decoded = [TOKENIZER.text.decode(pieces) for pieces in pieces_between_pictures(ids)]
    assert [part for part in parts if isinstance(part, str)] == [text for text in decoded if text]


def pieces_between_pictures(ids: list[int]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for token in ids:
        if token == VOCABULARY.begin_image:
            runs.append([])
        elif VOCABULARY.modality[token] == TEXT:
            runs[-1].append(int(VOCABULARY.piece_of_id[token]))
    return runs


def test_pictures_are_drawn_with_previews_and_stop_texts_end_them_all():
    picture = random_picture(1)
    ids = np.concatenate([TOKENIZER.encode(["It is ", picture, " a dog. STOP"]), TOKENIZER.encode([picture])])
    stream = DocumentStream(TOKENIZER, NO_PROMPT, ["STOP"], preview_every=2)
    events = [event for token in ids for event in stream.feed(np.asarray([token]))]
    assert stream.stopped
    (expected,) = TOKENIZER.decode(TOKENIZER.encode([picture]))
    started, *progress, done = [event for event in events if not isinstance(event, TextPiece)]
    assert (started, done) == (PictureStarted(1), PictureDone(1, expected))
    assert [(event.written, event.of, event.preview is not None) for event in progress] == [
        (1, 4, False), (2, 4, True), (3, 4, False), (4, 4, True)
    ]  # fmt: skip
    half = np.asarray(progress[1].preview)
    assert (half[8:] == GREY).all()  # two of 2 x 2 codes
    assert not (half[:8] == GREY).all()
    assert progress[3].preview == expected
    assert stream.document == ["It is ", expected, " a dog. "]


def test_preview_begins_like_the_picture_that_ends_like_it():
    codes = TOKENIZER.image.tokenize([random_picture(2)])
    assert preview_of(TOKENIZER.image, codes[0].tolist()) == TOKENIZER.image.detokenize(codes)[0]
    one = np.asarray(preview_of(TOKENIZER.image, codes[0, :1].tolist()))
    assert (one[8:] == GREY).all()
    assert (one[:, 8:] == GREY).all()
    assert not (one[:8, :8] == GREY).all()


def test_picture_that_the_prompt_began_is_completed():
    ids = TOKENIZER.encode([random_picture(1)])
    prompt, rest = np.concatenate([NO_PROMPT, ids[:3]]), ids[3:]
    stream = DocumentStream(TOKENIZER, prompt)
    events = [*stream.feed(rest[:1]), *stream.feed(rest[1:])]
    assert events[:2] == [PictureStarted(1), PictureProgress(1, 3, 4)]
    assert stream.document == TOKENIZER.image.detokenize(VOCABULARY.code_of_id[ids[1:-1]][None])
