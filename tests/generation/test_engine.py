"""The engine writes what a person would write by hand, one full reading of the document per token."""

from __future__ import annotations

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import scrambled_vocabulary, transformer_for, transformer_params

from chameleon_jax.config import ConfigError, EngineConfig, GenerationConfig, MeshConfig, SamplingConfig
from chameleon_jax.generation import engine as engine_module
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.handle import EngineError, Result
from chameleon_jax.generation.modality import Columns
from chameleon_jax.generation.options import PromptError
from chameleon_jax.generation.prefill import CHUNK
from chameleon_jax.generation.programs import decode, make_weights
from chameleon_jax.models.transformer import Transformer, abstract_params
from chameleon_jax.sharding import make_mesh, params_shardings

CODES = 4
VOCABULARY = scrambled_vocabulary(num_pieces=26, num_codes=12, seed=3)
MODEL = transformer_for(VOCABULARY)
TEXT, IMAGE = set(VOCABULARY.text_ids.tolist()), set(VOCABULARY.image_ids.tolist())
BOS, EOS = VOCABULARY.bos, VOCABULARY.eos
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


CONTEXT = 96


def engine(params, **settings) -> Engine:
    """An engine of four rows; all share their programs."""
    weights = make_weights(params, MODEL, Columns.build(VOCABULARY, CODES), dtype="float32")
    settings = EngineConfig(**{"rows": 4, **settings})
    return Engine(MODEL, weights, VOCABULARY, CODES, context_length=CONTEXT, settings=settings)


def run(params, prompts, options: GenerationConfig | list, *, samples: list[int] | None = None, **settings):
    """The answers to some prompts, which share an engine."""
    options = options if isinstance(options, list) else [options] * len(prompts)
    shared = engine(params, **settings)
    handles = [
        shared.submit(np.array(prompt), each, sample=sample)
        for prompt, each, sample in zip(prompts, options, samples or [0] * len(prompts), strict=True)
    ]
    return [handle.result() for handle in handles]


def generate(params, prompts, options, **more) -> list[list[int]]:
    return [result.ids.tolist() for result in run(params, prompts, options, **more)]


@jax.jit
def _logits(params, ids, places):
    return jax.vmap(jnp.take, (0, 0, None))(Transformer(MODEL).apply({"params": params}, ids), places, 0)


def write_by_hand(params, prompt: list[int], config: GenerationConfig, negative: list[int] = ()) -> list[int]:
    """Greedy generation without cache, mask tables or shared programs: three separate prompts (spec section 5.4)."""

    def logits_after(*prompts: list[int]) -> np.ndarray:
        padded = np.zeros((3, CONTEXT), np.int32)  # on the right, where a causal model cannot see it
        for row, ids in enumerate(prompts):
            padded[row, : len(ids)] = ids
        places = np.array([len(ids) - 1 for ids in prompts] + [0] * (3 - len(prompts)))
        return np.array(_logits(params, padded, places), np.float64)

    ids, written, words = list(prompt), [], 0
    context = min(config.context_length or CONTEXT, CONTEXT)
    while len(ids) < context:
        last_begin = max((place for place, token in enumerate(ids) if token == BEGIN), default=None)
        current = [] if last_begin is None else ids[last_begin:]
        in_text = last_begin is None or END in current
        if in_text:
            if words == config.max_new_tokens:
                break
            logits = logits_after(ids)[0]
            may_follow = TEXT | {EOS}
            if config.mode != "text" and context - len(ids) > CODES + 2:
                may_follow |= {BEGIN}
            for token in set(ids):
                logits[token] *= config.repetition_penalty ** (-1 if logits[token] > 0 else 1)
        else:
            pictures = [token for token in ids if token in IMAGE | {BOS, BEGIN, END}]
            full, pictures, nothing = logits_after(ids, pictures, [BOS, *negative, *current])
            pictures = nothing if negative else pictures  # there is no picture before this one
            logits = nothing + config.image_guidance * (pictures - nothing) + config.text_guidance * (full - pictures)
            may_follow = IMAGE if len(current) <= CODES else {END}
        ranking = sorted(may_follow, key=lambda token: -logits[token])
        if len(ranking) > 1:
            assert logits[ranking[0]] - logits[ranking[1]] > 1e-3, "too close to compare; take another seed"
        written.append(ranking[0])
        ids.append(ranking[0])
        words += in_text and ranking[0] != BEGIN
        if ranking[0] == EOS or (config.mode == "image" and ranking[0] == END):
            break
    return written


def whole_pictures(tokens) -> int:
    """Number of pictures; fails unless each is begin, CODES codes, end."""
    count, place = 0, 0
    while place < len(tokens):
        if tokens[place] == BEGIN:
            block = tokens[place : place + CODES + 2]
            assert len(block) == CODES + 2
            assert block[-1] == END
            assert set(block[1:-1]) <= IMAGE
            count, place = count + 1, place + CODES + 2
        else:
            assert tokens[place] in TEXT | {EOS}
            place += 1
    return count


# ----------------------------------------------------------------------------------------------------------------------
# Equality with the plain loop
# ----------------------------------------------------------------------------------------------------------------------


def requests_of_every_kind() -> tuple[list, list]:
    """Text, one picture, both; with guidance by text, by pictures, by both, by none; repetition penalised."""
    base = GenerationConfig(mode="interleaved", max_new_tokens=14, text=GREEDY, image=GREEDY)
    scales = [(3.0, 1.2), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0)]
    cases = [(prompt, {"text_guidance": t, "image_guidance": i}) for prompt in PROMPTS for t, i in scales]
    cases += [(prompt, {"mode": "text", "max_new_tokens": 24}) for prompt in PROMPTS[:4]]
    cases += [([*prompt, BEGIN], {"mode": "image", "image_guidance": i}) for prompt in PROMPTS[:4] for i in (1.0, 1.5)]
    cases += [(prompt, {"repetition_penalty": 1.7}) for prompt in PROMPTS]
    return [prompt for prompt, _ in cases], [dataclasses.replace(base, **changes) for _, changes in cases]


@functools.cache
def written_by_hand() -> list[list[int]]:
    params = params_that_draw(seed=0)
    return [write_by_hand(params, prompt, options) for prompt, options in zip(*requests_of_every_kind(), strict=True)]


@pytest.mark.parametrize("window", [1, 3])
def test_requests_of_every_kind_in_one_batch_equal_the_plain_loop(window):
    expected = written_by_hand()
    found = generate(params_that_draw(seed=0), *requests_of_every_kind(), window=window)
    for number, tokens in enumerate(expected):
        assert found[number] == tokens, number
    # The comparison means something only if a row wrote text between two pictures of its own.
    first_texts = [tokens[tokens.index(END) + 1 :] for tokens in expected if END in tokens]
    assert any(tokens[0] in TEXT and BEGIN in tokens for tokens in first_texts if tokens)


@functools.cache
def mixed_requests() -> tuple[list, list, list]:
    """Prompts, options and samples of 24 requests of every kind, drawn from hot distributions."""
    rng = np.random.default_rng(7)
    prompts, options = [], []
    for number in range(24):
        mode = ("text", "interleaved", "image")[number % 3]
        prompt = PROMPTS[rng.integers(4)]
        prompts.append([*prompt, BEGIN] if mode == "image" else prompt)
        sampling = SamplingConfig(
            temperature=rng.choice([0.7, 1.5, 3.0]), top_p=rng.choice([0.8, 1.0]), top_k=int(rng.choice([0, 5])),
            min_p=rng.choice([0.0, 0.02]),
        )  # fmt: skip
        options.append(
            GenerationConfig(
                mode=mode,
                max_new_tokens=int(rng.integers(1, 20)),
                max_images=[None, 1, 2][rng.integers(3)] if mode == "interleaved" else None,
                text=sampling,
                image=sampling,
                repetition_penalty=rng.choice([1.0, 1.3]),
                text_guidance=rng.choice([1.0, 3.0]),
                image_guidance=rng.choice([1.0, 1.2]),
                seed=number,
            )
        )
    return prompts, options, [number // 2 for number in range(24)]


@functools.cache
def mixed_answers() -> list[list[int]]:
    prompts, options, samples = mixed_requests()
    return generate(params_that_draw(seed=4, eagerness=4.0), prompts, options, samples=samples)


@pytest.mark.parametrize("change", [{"rows": 1}, {"window": 3}, {"rows": 8, "steps": 4}], ids=str)
def test_an_answer_does_not_depend_on_the_batch(change):
    """Rows, neighbours, arrival, steps a call, Jacobi decoding: the same tokens, with the same keys."""
    params = params_that_draw(seed=4, eagerness=4.0)
    order = np.random.default_rng(1).permutation(24)
    prompts, options, samples = ([each[number] for number in order] for each in mixed_requests())
    found = generate(params, prompts, options, samples=samples, **change)
    assert [found[place] for place in np.argsort(order)] == mixed_answers()


def test_in_bfloat16_an_answer_does_not_depend_on_its_neighbours():
    """On a CPU; elsewhere the rounding of products may depend on how many lanes share a step."""
    params, (prompts, options, samples) = params_that_draw(seed=4, eagerness=4.0), mixed_requests()
    weights = make_weights(params, MODEL, Columns.build(VOCABULARY, CODES), dtype="bfloat16")

    def answers(numbers) -> dict[int, list[int]]:
        settings = EngineConfig(rows=4)
        shared = Engine(MODEL, weights, VOCABULARY, CODES, context_length=CONTEXT, settings=settings, dtype="bfloat16")
        handles = {n: shared.submit(np.array(prompts[n]), options[n], sample=samples[n]) for n in numbers}
        return {number: handle.result().ids.tolist() for number, handle in handles.items()}

    alone = {number: answer for each in range(6) for number, answer in answers([each]).items()}
    together = answers(np.random.default_rng(2).permutation(24))
    assert alone == {number: together[number] for number in alone}


def test_answers_hold_text_and_whole_pictures_within_their_limits():
    prompts, options, _ = mixed_requests()
    pictures = []
    for prompt, each, tokens in zip(prompts, options, mixed_answers(), strict=True):
        drawn = whole_pictures([BEGIN, *tokens] if each.mode == "image" else tokens)
        pictures.append(drawn)
        words = sum(token in TEXT | {EOS} for token in tokens)
        assert len(prompt) + len(tokens) <= CONTEXT
        assert drawn == 1 if each.mode == "image" else words <= each.max_new_tokens
        assert drawn <= {"text": 0, "image": 1}.get(each.mode, each.max_images or 99)
        assert EOS not in tokens[:-1]
    assert sum(pictures) > 12
    assert max(pictures) > 1


def test_samples_and_seeds_give_other_answers():
    params = params_that_draw(seed=4)
    options = GenerationConfig(mode="interleaved", max_new_tokens=20, text=HOT, image=HOT)
    seeds = [dataclasses.replace(options, seed=seed) for seed in (1, 1, 1, 2, 2, 2)]
    found = generate(params, [PROMPTS[0]] * 6, seeds, samples=[0, 1, 2, 0, 1, 2])
    assert len(set(map(tuple, found))) == 6


def test_tokens_are_drawn_independently():
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    options = GenerationConfig(mode="text", max_new_tokens=16, text=HOT)
    rows = generate(params, [PROMPTS[0]] * 128, options, samples=list(range(128)), rows=64)
    choices = len(TEXT) + 1
    for distance in (1, 2, 3):
        pairs = [(row[place], row[place + distance]) for row in rows for place in range(len(row) - distance)]
        same = np.mean([first == second for first, second in pairs])
        assert abs(same - 1 / choices) < 4 * (1 / choices / len(pairs)) ** 0.5


@pytest.mark.parametrize("room", [CODES + 2, CODES + 3, CODES + 5])
def test_picture_is_begun_only_where_it_and_one_more_token_fit(room):
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    context = len(PROMPTS[0]) + room
    options = GenerationConfig(mode="interleaved", context_length=context, text=HOT, image=HOT)
    results = run(params, [PROMPTS[0]] * 128, options, samples=list(range(128)), rows=64)
    assert max(whole_pictures(result.ids) for result in results) == (1 if room > CODES + 2 else 0)
    assert {result.reason for result in results} == {"stop", "context"}


def test_sampled_documents_hold_only_what_may_be_written():
    params = params_that_draw(seed=6)
    # Columns past the vocabulary, unused ids and specials would win by far if anything let them.
    used = TEXT | IMAGE | {EOS, BEGIN, END}
    others = [token for token in range(MODEL.vocab_size) if token not in used]
    assert len(others) >= 5 + 3 + 3
    params["output"] = params["output"].at[:, others].multiply(100.0)
    options = GenerationConfig(mode="interleaved", text=HOT, image=HOT, text_guidance=1.0, image_guidance=1.0)
    found = generate(params, [PROMPTS[0]] * 24, options, samples=list(range(24)))
    assert sum(map(whole_pictures, found)) > 10


@pytest.mark.parametrize("cache", ["as_is", "int8"])
def test_narrow_weights_and_caches_keep_to_the_grammar(cache):
    params, (prompts, options, _) = params_that_draw(seed=4, eagerness=4.0), mixed_requests()
    weights = make_weights(params, MODEL, Columns.build(VOCABULARY, CODES), dtype="bfloat16", quantization="int8")
    settings = EngineConfig(rows=4, weights="int8", cache=cache)
    if cache == "as_is":  # lanes of guidance, which take programs of their own, are those of the other cache
        options = [dataclasses.replace(each, text_guidance=1.0, image_guidance=1.0) for each in options]
    shared = Engine(MODEL, weights, VOCABULARY, CODES, context_length=CONTEXT, settings=settings, dtype="bfloat16")
    handles = [shared.submit(np.array(prompt), each) for prompt, each in zip(prompts[:9], options[:9], strict=True)]
    for handle in handles:
        ids = handle.result().ids
        whole_pictures([BEGIN, *ids] if handle.options.mode == "image" else ids)


def test_an_engine_on_several_devices_gives_the_answers_of_one():
    """The axis tensor does not divide the 29 columns of text."""
    params, (prompts, options, samples) = params_that_draw(seed=4, eagerness=4.0), mixed_requests()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    placed = jax.device_put(params, params_shardings(abstract_params(MODEL), mesh))
    shared = engine(placed)
    assert shared.weights.text.matrix.values.sharding.shard_shape((30, 16)) == (15, 8)
    handles = [shared.submit(np.array(prompts[number]), options[number], sample=samples[number]) for number in range(9)]
    assert [handle.result().ids.tolist() for handle in handles] == mixed_answers()[:9]


# ----------------------------------------------------------------------------------------------------------------------
# Stops and limits
# ----------------------------------------------------------------------------------------------------------------------


def test_end_of_turn_is_written_only_in_chats_and_ends_the_answer():
    params, turn = never_ending(), VOCABULARY.end_of_turn
    params["output"] = params["output"].at[:, turn].multiply(-100.0)
    options = GenerationConfig(mode="text", text=HOT, max_new_tokens=8)
    chat = dataclasses.replace(options, form="chat")
    completion, answer = run(params, [PROMPTS[0]] * 2, [options, chat])
    assert turn not in completion.ids
    assert completion.reason == "length"
    assert (answer.ids.tolist().index(turn), answer.reason) == (len(answer.ids) - 1, "stop")


def test_answer_ends_at_any_of_its_stop_ids():
    params = params_that_draw(seed=0)
    options = GenerationConfig(mode="text", text=GREEDY, max_new_tokens=24)
    (whole,) = generate(params, [PROMPTS[0]], options)
    stop = max(whole, key=whole.index)
    assert stop != whole[0]
    options = dataclasses.replace(options, stop_ids=(min(TEXT - set(whole)), stop))
    (result,) = run(params, [PROMPTS[0]], options)
    assert result.ids.tolist() == whole[: whole.index(stop) + 1]
    assert result.reason == "stop"


def test_end_of_sequence_in_a_prompt_or_in_another_row_does_not_count():
    """Vector V14."""
    params = params_that_draw(seed=5)
    params["output"] = 0 * params["output"]  # every allowed token is equally likely
    options = GenerationConfig(mode="text", max_new_tokens=3, text=HOT)
    found = generate(params, [[BOS, EOS, *text(5)]] * 128, options, samples=list(range(128)), rows=64)
    lengths = [len(tokens) for tokens in found]
    assert {1, 3} <= set(lengths)
    assert all((EOS in tokens) == (tokens[-1] == EOS) for tokens in found)


@pytest.mark.parametrize("penalty", [0.0, -1.2])
def test_penalty_must_be_positive(penalty):
    with pytest.raises(ConfigError, match="repetition_penalty"):
        GenerationConfig(repetition_penalty=penalty)


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "no tokens"),
        ([BOS, 10_000], {}, "ids from .* to 10000: must be from 0 to"),
        ([BOS] * CONTEXT, {}, f"{CONTEXT} tokens, which leaves no room for an answer: the context_length is {CONTEXT}"),
        ([BOS] * 91 + [BEGIN], {"mode": "image"}, "no room for the 5 tokens of a picture"),
        ([BOS], {"stop_ids": (BEGIN + 1000,)}, "stop_ids = .* never written outside pictures"),
        ([BOS], {"stop_ids": tuple(VOCABULARY.text_ids[:9].tolist())}, "must be at most 6 ids"),
    ],
)
def test_request_that_cannot_be_answered_is_refused_before_any_work(prompt, changes, message):
    shared = engine(params_that_draw())
    with pytest.raises((PromptError, ConfigError), match=message):
        shared.submit(np.array(prompt, np.int32), GenerationConfig(**{"mode": "text", **changes}))
    assert shared.statistics.requests == 0


# ----------------------------------------------------------------------------------------------------------------------
# Life of an engine
# ----------------------------------------------------------------------------------------------------------------------

LONG = GenerationConfig(mode="text", max_new_tokens=60, text=HOT, seed=3)


def never_ending():
    """Parameters that hardly ever end a text: whatever else may be written, one of 25 pieces is far more likely."""
    params = params_that_draw(seed=4)
    return {**params, "output": 20 * params["output"].at[:, EOS].set(0)}


def test_answer_streams_and_can_be_cancelled():
    shared = engine(never_ending())
    handle, other = (shared.submit(np.array(PROMPTS[0]), LONG, sample=sample) for sample in (0, 1))
    chunks = []
    for chunk in handle:
        chunks.append(chunk)
        if len(chunks) == 2:
            handle.cancel()
    assert handle.result().reason == "cancelled"
    (whole,) = run(never_ending(), [PROMPTS[0]], LONG)
    written = np.concatenate([chunk.ids for chunk in chunks])
    assert 0 < len(written) < len(whole.ids)
    np.testing.assert_array_equal(written, whole.ids[: len(written)])
    assert other.result().ids.tolist() == generate(never_ending(), [PROMPTS[0]], LONG, samples=[1])[0]
    again = shared.submit(np.array(PROMPTS[0]), LONG)  # in the row that became free
    np.testing.assert_array_equal(again.result().ids, whole.ids)


def test_answer_cancelled_while_a_call_begins_its_picture_harms_no_other(monkeypatch):
    shared = engine(params_that_draw(seed=4, eagerness=8.0))
    options = dataclasses.replace(LONG, mode="interleaved", text_guidance=3.0)
    handles = [shared.submit(np.array(PROMPTS[0]), options, sample=sample) for sample in range(4)]
    began = []

    def decode_and_cancel(*arguments, **more):
        outputs = decode(*arguments, **more)
        waiting = outputs[-1].waiting
        began.append(bool(np.asarray(waiting)[:3].any()))
        for handle in handles[:3]:
            if handle.row is not None and waiting[handle.row]:
                handle.cancel()
        return outputs

    monkeypatch.setattr(engine_module, "decode", decode_and_cancel)
    (alone,) = run(params_that_draw(seed=4, eagerness=8.0), [PROMPTS[0]], options, samples=[3])
    assert handles[3].result().ids.tolist() == alone.ids.tolist()
    assert any(began)
    assert "cancelled" in {handle.result().reason for handle in handles[:3]}


def test_picture_is_guided_away_from_a_negative_prompt():
    params = params_that_draw()
    prompt, negative = [*PROMPTS[0], BEGIN], text(9, 2, 6)
    for scale in (1.0, 3.0):
        config = GenerationConfig(mode="image", text=GREEDY, image=GREEDY, text_guidance=scale, image_guidance=1.2)
        told = []
        shared = engine(params)
        handle = shared.submit(
            np.array(prompt), config, negative=np.array(negative), on_change=lambda told=told: told.append(1)
        )
        assert handle.result().ids.tolist() == write_by_hand(params, prompt, config, negative)
        assert len(told) == len(handle.chunks()) + 1  # and the end
        assert len(handle.chunks(1)) == len(handle.chunks()) - 1
    for wrong, said in (
        ({"prompt": PROMPTS[1]}, "without pictures"), ({"negative": picture(1, 2, 3, 4)}, "text alone"),
        ({"negative": text(1) * CONTEXT}, "must be at most"), ({"prompt": PROMPTS[0], "mode": "text"}, "mode 'image'"),
    ):  # fmt: skip
        options = dataclasses.replace(config, mode=wrong.get("mode", "image"))
        with pytest.raises(PromptError, match=said):
            shared.submit(
                np.array(wrong.get("prompt", prompt)), options, negative=np.array(wrong.get("negative", negative))
            )


def test_thread_serves_requests_from_many_threads_and_closes():
    expected = mixed_answers()
    prompts, options, samples = mixed_requests()
    answers: list[Result | None] = [None] * 24

    with engine(params_that_draw(seed=4, eagerness=4.0), queue=3) as shared:  # submit waits for room in the queue

        def ask(number: int) -> None:
            handle = shared.submit(np.array(prompts[number]), options[number], sample=samples[number])
            answers[number] = handle.result()

        threads = [threading.Thread(target=ask, args=[number]) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.ids.tolist() for answer in answers] == expected
    with pytest.raises(EngineError, match="closed"):
        shared.submit(np.array(PROMPTS[0]), LONG)


def test_full_queue_is_said_and_closing_ends_what_waits():
    shared = engine(never_ending(), rows=1, queue=2)
    handles = [shared.submit(np.array(PROMPTS[0]), LONG) for _ in range(2)]
    with pytest.raises(EngineError, match="2 requests wait already; try again later"):
        shared.submit(np.array(PROMPTS[0]), LONG, wait=False)
    next(iter(handles[0]))
    shared.close()
    for handle in handles:
        with pytest.raises(EngineError, match="closed"):
            handle.result()


def test_rows_are_busy_while_requests_wait():
    """32 requests of every kind through 8 rows."""
    prompts, options, samples = mixed_requests()
    params = params_that_draw(seed=4, eagerness=4.0)
    shared = engine(params, rows=8, steps=4)
    handles = [
        shared.submit(np.array(prompts[number % 24]), options[number % 24], sample=samples[number % 24])
        for number in range(32)
    ]
    for number, handle in enumerate(handles):
        assert handle.result().ids.tolist() == mixed_answers()[number % 24]
    statistics = shared.statistics
    assert statistics.row_steps_while_waiting > 100
    assert statistics.busy_while_waiting / statistics.row_steps_while_waiting >= 0.9


def test_requests_that_come_while_a_prompt_is_read_are_written_beside_it(monkeypatch):
    shared, options = engine(never_ending()), dataclasses.replace(LONG, mode="text", max_new_tokens=16)
    handles, read = [], shared._lanes.read

    def read_while_others_ask(*arguments):
        if len(handles) < 8:
            handles.append(shared.submit(np.array(PROMPTS[0]), options, sample=len(handles)))
        return read(*arguments)

    monkeypatch.setattr(shared._lanes, "read", read_while_others_ask)
    handles.append(shared.submit(np.array(PROMPTS[0]), options))
    assert [len(handle.result().ids) for handle in handles] == [16] * 8  # there are more of them meanwhile
    assert (shared.statistics.steps, shared.statistics.busy_row_steps) == (2 * 16, 8 * 16)


# ----------------------------------------------------------------------------------------------------------------------
# Prompts
# ----------------------------------------------------------------------------------------------------------------------


def test_long_prompts_are_read_in_chunks_and_shared_prefixes_once():
    params, context = params_that_draw(seed=0), 2 * CHUNK + 128
    weights = make_weights(params, MODEL, Columns.build(VOCABULARY, CODES), dtype="float32")
    shared = Engine(MODEL, weights, VOCABULARY, CODES, context_length=context, settings=EngineConfig(rows=2))
    options = GenerationConfig(mode="text", text=GREEDY, max_new_tokens=4)
    rng = np.random.default_rng(0)
    prefix = [BOS, *rng.choice(VOCABULARY.text_ids, CHUNK + 9)]
    prompts = [[*prefix, *text(1, 2, 3)], [*prefix, *text(7, 8)], [*prefix, *text(7, 8)], PROMPTS[0]]

    @jax.jit
    def logits(ids):
        return Transformer(MODEL).apply({"params": params}, ids[None])[0]

    handles = [shared.submit(np.array(prompt), options) for prompt in prompts]
    for prompt, handle in zip(prompts, handles, strict=True):
        ids = list(prompt)
        for token in handle.result().ids:
            padded = np.zeros(context, np.int32)
            padded[: len(ids)] = ids
            scores = np.asarray(logits(padded))[len(ids) - 1]
            assert token == max(TEXT | {EOS}, key=lambda token: scores[token])
            ids.append(token)
    assert shared.statistics.prompt_tokens_reused == CHUNK + len(prompts[1]) - 1
