"""The compiled program writes what a person would write by hand, one full reading of the document per token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import scrambled_vocabulary, transformer_for, transformer_params

from chameleon_jax.config import ConfigError, ExecutionConfig, GenerationConfig, SamplingConfig
from chameleon_jax.generation.engine import generate_ids, make_prompts
from chameleon_jax.generation.modality import ModalityRules
from chameleon_jax.models.transformer import Transformer
from chameleon_jax.tokens.vocabulary import Vocabulary

CODES = 4
VOCABULARY = scrambled_vocabulary(num_pieces=25, num_codes=12, seed=3)
MODEL = transformer_for(VOCABULARY)
TEXT, IMAGE = set(VOCABULARY.text_ids.tolist()), set(VOCABULARY.image_ids.tolist())
BOS, EOS, PAD = VOCABULARY.bos, VOCABULARY.eos, VOCABULARY.pad
BEGIN, END = VOCABULARY.begin_image, VOCABULARY.end_image
GREEDY = SamplingConfig(temperature=0.0)
HOT = SamplingConfig(temperature=2.0, top_p=1.0)


def params_that_draw(seed: int = 0, eagerness: float = 2.0):
    """Random parameters under which pictures are begun rather often."""
    params = transformer_params(MODEL, seed)
    return {**params, "output": params["output"].at[:, BEGIN].multiply(eagerness)}


def text(*pieces: int) -> list[int]:
    return VOCABULARY.text_ids[list(pieces)].tolist()


def picture(*codes: int) -> list[int]:
    return [BEGIN, *VOCABULARY.image_ids[list(codes)].tolist(), END]


PROMPTS = [
    [BOS, *text(3, 1, 4, 1, 5)],
    [BOS, *text(9, 2), *picture(6, 5, 3, 5), *text(8, 9, 7)],
    [BOS],
    [BOS, *picture(0, 1, 2, 3), VOCABULARY.end_of_turn, *text(9), *picture(3, 8, 3, 2), *text(7, 9, 5, 0, 2, 8, 8, 4)],
    [BOS, *text(1, 9, 7), BEGIN, *VOCABULARY.image_ids[[1, 6]].tolist()],  # stops inside a picture
]


def generate(params, prompts, config: GenerationConfig, *, seed: int = 0, rows: list[int] | None = None) -> np.ndarray:
    """The engine on some prompts; `rows` are the numbers that their random keys are made of."""
    rows = list(range(len(prompts))) if rows is None else rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(rows))
    rules = ModalityRules.build(VOCABULARY, CODES, MODEL.vocab_size)
    padded = make_prompts([np.asarray(prompt, np.int32) for prompt in prompts], VOCABULARY, config)
    return np.asarray(generate_ids(MODEL, ExecutionConfig(), config, params, rules, padded, keys, eos=EOS, pad=PAD))


@jax.jit
def _full_forward(params, ids):
    return Transformer(MODEL).apply({"params": params}, ids[None])[0]


def write_by_hand(params, prompt: list[int], config: GenerationConfig) -> list[int]:
    """Greedy generation without cache, mask tables or shared programs: three separate prompts (spec section 5.4)."""

    def logits_after(ids: list[int]) -> np.ndarray:
        padded = np.zeros(96, np.int32)  # on the right, where a causal model cannot see it
        padded[: len(ids)] = ids
        return np.array(_full_forward(params, jnp.asarray(padded))[len(ids) - 1], np.float64)

    ids, written = list(prompt), []
    while len(written) < config.max_new_tokens:
        last_begin = max((place for place, token in enumerate(ids) if token == BEGIN), default=None)
        current = [] if last_begin is None else ids[last_begin:]
        if last_begin is None or END in current:
            logits = logits_after(ids)
            may_follow = TEXT | {EOS}
            if config.mode != "text" and config.max_new_tokens - len(written) > CODES + 2:
                may_follow |= {BEGIN}
            for token in set(ids):
                logits[token] *= config.repetition_penalty ** (-1 if logits[token] > 0 else 1)
        else:
            full = logits_after(ids)
            pictures = logits_after([token for token in ids if token in IMAGE | {BOS, BEGIN, END}])
            nothing = logits_after([BOS, *current])  # repetition is not penalised in pictures
            logits = nothing + config.image_guidance * (pictures - nothing) + config.text_guidance * (full - pictures)
            may_follow = IMAGE if len(current) <= CODES else {END}
        ranking = sorted(may_follow, key=lambda token: -logits[token])
        if len(ranking) > 1:
            assert logits[ranking[0]] - logits[ranking[1]] > 1e-3, "too close to compare; take another seed"
        written.append(ranking[0])
        ids.append(ranking[0])
        if ranking[0] == EOS or (config.mode == "image" and ranking[0] == END):
            break
    return written


def assert_same(rows: np.ndarray, expected: list[list[int]]) -> None:
    for row, tokens in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row, tokens + [PAD] * (len(row) - len(tokens)))


def whole_pictures(tokens) -> int:
    """Number of pictures; fails unless each is begin, CODES codes, end."""
    tokens, count, place = [int(token) for token in tokens], 0, 0
    while place < len(tokens):
        if tokens[place] == BEGIN:
            block = tokens[place : place + CODES + 2]
            assert len(block) == CODES + 2
            assert block[-1] == END
            assert set(block[1:-1]) <= IMAGE
            count, place = count + 1, place + CODES + 2
        else:
            assert tokens[place] in TEXT | {EOS, PAD}
            place += 1
    return count


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_text_is_the_argmax_of_full_readings(seed):
    params = params_that_draw(seed)
    config = GenerationConfig(mode="text", max_new_tokens=24, text=GREEDY)
    prompts = PROMPTS[:4]
    expected = [write_by_hand(params, prompt, config) for prompt in prompts]
    assert_same(generate(params, prompts, config), expected)
    assert not set(np.concatenate(expected)) & {BEGIN, END, *IMAGE}


@pytest.mark.parametrize(("text_guidance", "image_guidance"), [(3.0, 1.2), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0)])
def test_guided_documents_equal_three_separate_prompts(text_guidance, image_guidance):
    params = params_that_draw(seed=0)
    config = GenerationConfig(
        max_new_tokens=40, text=GREEDY, image=GREEDY, text_guidance=text_guidance, image_guidance=image_guidance
    )
    expected = [write_by_hand(params, prompt, config) for prompt in PROMPTS]
    assert_same(generate(params, PROMPTS, config), expected)
    # The comparison means something only if a row wrote text between two pictures of its own.
    first_texts = [tokens[tokens.index(END) + 1 :] for tokens in expected if END in tokens]
    assert any(tokens[0] in TEXT and BEGIN in tokens for tokens in first_texts if tokens)


@pytest.mark.parametrize("image_guidance", [1.0, 1.5])
def test_image_mode_writes_exactly_one_guided_picture(image_guidance):
    params = params_that_draw(seed=2)
    config = GenerationConfig(mode="image", max_new_tokens=12, image=GREEDY, image_guidance=image_guidance)
    prompts = [[*prompt, BEGIN] for prompt in PROMPTS[:4]]
    expected = [write_by_hand(params, prompt, config) for prompt in prompts]
    assert_same(generate(params, prompts, config), expected)
    assert [len(tokens) for tokens in expected] == [CODES + 1] * 4


def test_repetition_penalty_covers_the_prompt_and_the_answer_but_no_pictures():
    params = params_that_draw(seed=0)
    config = GenerationConfig(max_new_tokens=30, text=GREEDY, image=GREEDY, repetition_penalty=1.7)
    expected = [write_by_hand(params, prompt, config) for prompt in PROMPTS]
    assert_same(generate(params, PROMPTS, config), expected)
    without = dataclasses.replace(config, repetition_penalty=1.0)
    assert [write_by_hand(params, prompt, without) for prompt in PROMPTS] != expected
    assert sum(BEGIN in tokens for tokens in expected) > 1


@pytest.mark.parametrize("penalty", [0.0, -1.2])
def test_penalty_must_be_positive(penalty):
    with pytest.raises(ConfigError, match="repetition_penalty"):
        GenerationConfig(repetition_penalty=penalty)


def test_auto_is_interleaved_to_the_engine():
    params = params_that_draw(seed=4)
    config = GenerationConfig(max_new_tokens=16, text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
    assert config.mode == "auto"
    interleaved = dataclasses.replace(config, mode="interleaved")
    np.testing.assert_array_equal(generate(params, PROMPTS, config), generate(params, PROMPTS, interleaved))


def test_prompts_are_padded_on_the_left_and_counted_from_their_first_token():
    """Vector V15. The rows are padded further than the longest, to one of few lengths."""
    vocabulary = Vocabulary.in_released_order(num_pieces=9, num_codes=8)
    assert vocabulary.pad == 1
    prompts = make_prompts([np.array([0, 7, 8]), np.array([0])], vocabulary, GenerationConfig(mode="text"))
    ids = np.asarray(prompts.ids)
    assert ids[:, -3:].tolist() == [[0, 7, 8], [1, 1, 0]]
    assert (ids[:, :-3] == 1).all()
    assert prompts.visible[0].sum(axis=1).tolist() == [3, 1]
    assert prompts.positions[0, 0, -3:].tolist() == [0, 1, 2]
    assert prompts.positions[0, 1, -1] == 0
    assert (ids.shape[1] - prompts.first_slot).tolist() == [3, 1]


def test_generation_goes_on_until_every_row_has_written_its_own_end():
    """Vector V14: an end of sequence inside a prompt does not count, nor that of another row."""
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    config = GenerationConfig(mode="text", max_new_tokens=3, text=HOT)
    ended, open_ = [BOS, EOS, *text(5)], [BOS, *text(5, 5)]
    first = generate(params, [ended] * 128, config)[:, 0]
    assert PAD not in first
    stops, goes_on = int(np.argmax(first == EOS)), int(np.argmax(first != EOS))

    rows = generate(params, [ended, open_], config, rows=[goes_on, stops])  # [0, 2, 5, 9] and [0, 5, 5, 2]
    assert rows[0, 0] in TEXT
    assert rows[0, 1] != PAD
    assert rows[1].tolist() == [EOS, PAD, PAD]
    rows = generate(params, [ended, open_], config, rows=[stops, stops])  # [0, 2, 5, 2] and [0, 5, 5, 2]
    assert rows.tolist() == [[EOS, PAD, PAD]] * 2


def test_row_of_a_batch_equals_the_row_alone():
    params = params_that_draw(seed=4)
    config = GenerationConfig(max_new_tokens=30, text=HOT, image=HOT)
    longer = [BOS, *text(*range(20))]  # crosses PROMPT_MULTIPLE, so the rows alone are padded less
    prompts = [*PROMPTS, longer]
    together = generate(params, prompts, config)
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(together[row], generate(params, [prompt], config, rows=[row])[0])


def test_samples_depend_on_the_seed_and_the_row_only():
    params = params_that_draw(seed=4)
    config = GenerationConfig(max_new_tokens=20, text=HOT, image=HOT)
    rows = generate(params, [PROMPTS[0]] * 3, config, seed=1)
    np.testing.assert_array_equal(rows, generate(params, [PROMPTS[0]] * 3, config, seed=1))
    assert len({tuple(row) for row in rows}) == 3
    other_seed = generate(params, [PROMPTS[0]] * 3, config, seed=2)
    assert not {tuple(row) for row in rows} & {tuple(row) for row in other_seed}
    other_neighbours = generate(params, [PROMPTS[3], PROMPTS[0], PROMPTS[2]], config, seed=1)
    np.testing.assert_array_equal(rows[1], other_neighbours[1])


def test_steps_are_drawn_independently():
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    config = GenerationConfig(mode="text", max_new_tokens=16, text=HOT)
    rows = generate(params, [PROMPTS[0]] * 128, config)
    choices = len(TEXT) + 1
    for distance in (1, 2, 3):
        both = (rows[:, distance:] != PAD) & (rows[:, :-distance] != PAD)
        same = (rows[:, distance:] == rows[:, :-distance])[both]
        assert abs(same.mean() - 1 / choices) < 4 * (1 / choices / same.size) ** 0.5


@pytest.mark.parametrize("room", [CODES + 2, CODES + 3, CODES + 5])
def test_picture_is_begun_only_where_it_and_one_more_token_fit(room):
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    config = GenerationConfig(max_new_tokens=room, text=HOT, image=HOT)
    rows = generate(params, [PROMPTS[0]] * 128, config)
    pictures = [whole_pictures(row) for row in rows]
    assert max(pictures) == (1 if room > CODES + 2 else 0)


def test_sampled_documents_hold_only_text_and_whole_pictures():
    params = params_that_draw(seed=6)
    # Columns past the vocabulary, unused ids and specials would win by far if anything let them.
    used = TEXT | IMAGE | {EOS, BEGIN, END}
    others = [token for token in range(MODEL.vocab_size) if token not in used]
    assert len(others) >= 5 + 3 + 3
    params["output"] = params["output"].at[:, others].multiply(100.0)
    config = GenerationConfig(max_new_tokens=40, text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
    rows = generate(params, [PROMPTS[0]] * 24, config)
    assert sum(whole_pictures(row) for row in rows) > 10
    assert (rows[:, 0] != PAD).all()


def test_nothing_is_written_after_the_end():
    params = params_that_draw(seed=6)
    params["output"] = params["output"].at[:, EOS].multiply(3.0)
    rows = generate(params, [PROMPTS[0]] * 24, GenerationConfig(max_new_tokens=40, text=HOT, image=HOT))
    ended = [row for row in rows if EOS in row]
    assert len(ended) > 10
    for row in ended:
        assert set(row[list(row).index(EOS) + 1 :]) <= {PAD}
