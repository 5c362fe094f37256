"""From a `GenerationConfig` to the arrays of a row, and what must be refused before anything is computed."""

from __future__ import annotations

import numpy as np

from chameleon_jax.config import GenerationConfig, SamplingConfig, require
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.modality import IN_TEXT, place_after
from chameleon_jax.generation.rows import STOPS, Request, seed_data
from chameleon_jax.generation.sampling import Sampling
from chameleon_jax.tokens.vocabulary import Vocabulary

MANY = 2**30
"""No limit."""


class PromptError(ChameleonError, ValueError):
    """A prompt that cannot be continued as asked."""


def make_request(
    prompt: np.ndarray,
    options: GenerationConfig,
    vocabulary: Vocabulary,
    text_ids: np.ndarray,
    codes_per_image: int,
    context_length: int,
) -> Request:
    """What a row has to know of a request.

    Args:
      prompt: ids with the begin of sequence.
      options: with a `mode` other than 'auto'.
      text_ids: those of `Columns`.
      context_length: most tokens of prompt and answer together.

    Raises:
      PromptError: if the prompt is empty, leaves no room for what is asked for, or has ids outside the vocabulary.
      ConfigError: if there are too many ids to stop at, or one is not of the vocabulary.
    """
    if len(prompt) == 0:
        raise PromptError("the prompt has no tokens; it must begin with the begin of sequence")
    if not 0 <= prompt.min() <= prompt.max() < vocabulary.size:
        raise PromptError(f"ids from {prompt.min()} to {prompt.max()}: must be from 0 to {vocabulary.size - 1}")
    place, room = place_after(vocabulary, prompt), context_length - len(prompt)
    needed = codes_per_image + 1 - place if place != IN_TEXT else 1
    if room < needed:
        what = f"the {needed:,} tokens of a picture" if place != IN_TEXT else "an answer"
        raise PromptError(
            f"the prompt has {len(prompt):,} tokens, which leaves no room for {what}: the context_length is "
            f"{context_length:,}. Shorten the prompt, or raise context_length for a model trained on longer rows"
        )
    pictures = 0 if options.mode == "text" else 1 if options.mode == "image" else options.max_images
    number, true = np.int32, np.bool_
    seen = np.zeros(vocabulary.size, bool)
    seen[prompt] = True
    return Request(
        length=np.array([len(prompt) - 1, 0, 0], np.int32),
        pending=number(prompt[-1]),
        place=number(place),
        room=number(room),
        text_left=number(options.max_new_tokens),
        pictures_left=number(MANY if pictures is None else pictures),
        one_picture=true(options.mode == "image"),
        ends_turn=true(options.form == "chat" or vocabulary.end_of_turn in options.stop_ids),
        stops=_stops(options, vocabulary, text_ids),
        key=seed_data(options.seed),
        text=_sampling(options.text),
        picture=_sampling(options.image),
        penalty=np.float32(options.repetition_penalty),
        guidance=true(options.text_guidance != 1 or options.image_guidance != 1),
        seen=seen[text_ids],
    )


def check_negative(
    prompt: np.ndarray,
    negative: np.ndarray,
    options: GenerationConfig,
    vocabulary: Vocabulary,
    codes_per_image: int,
    context_length: int,
) -> None:
    """Raises `PromptError` unless a picture can be guided away from `negative`, as `Engine.submit` takes it."""
    if not np.isin(negative, vocabulary.text_ids).all():
        raise PromptError("a negative prompt is text alone")
    if options.mode != "image" or np.isin(prompt, vocabulary.image_ids).any():
        raise PromptError("a negative prompt is for one picture, in mode 'image', after a prompt without pictures")
    if (longest := context_length - codes_per_image - 3) < len(negative):
        raise PromptError(f"the negative prompt has {len(negative):,} tokens: must be at most {longest:,}; shorten it")


def _sampling(config: SamplingConfig) -> Sampling:
    numbers = (np.float32(each) for each in (config.temperature, config.top_p, config.min_p))
    return Sampling(*numbers, top_k=np.int32(config.top_k))


def _stops(options: GenerationConfig, vocabulary: Vocabulary, text_ids: np.ndarray) -> np.ndarray:
    stops = [vocabulary.eos, *([vocabulary.end_of_turn] if options.form == "chat" else []), *options.stop_ids]
    for token in options.stop_ids:
        require(token in text_ids, "stop_ids", token, "is never written outside pictures, so nothing would stop there")
    stops = list(dict.fromkeys(stops))
    require(len(stops) <= STOPS, "stop_ids", len(options.stop_ids), f"must be at most {STOPS - 2} ids")
    return np.array(stops + [-1] * (STOPS - len(stops)), np.int32)
