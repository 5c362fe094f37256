"""A chat gives the model the ids that it was tuned on."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import random_picture, scrambled_tokenizer

from chameleon_jax.document import DocumentError
from chameleon_jax.tokens.chat import TEMPLATE_OF_END, Turn, encode_turns
from data_pipeline.sources import ConversationsSource
from data_pipeline.tokenize import join_turns

TOKENIZER = scrambled_tokenizer()
CHAT = [
    Turn("user", ["The quick ", random_picture(1)]),
    Turn("assistant", ["jumps over."]),
    Turn("user", ["Which digit?"]),
    Turn("assistant", [random_picture(2), " nine"]),
]


@pytest.mark.parametrize("answer_end", ["eos", "separator"])
def test_chats_are_joined_as_conversations_are_prepared(answer_end):
    encoded = [TOKENIZER.encode(turn.document) for turn in CHAT]
    source = ConversationsSource(path="chat.jsonl", answer_end=answer_end)
    prepared, *_ = join_turns(list(zip(encoded[::2], encoded[1::2], strict=True)), source, TOKENIZER.vocabulary)
    ids = encode_turns(TOKENIZER, CHAT, TEMPLATE_OF_END[answer_end])
    begin = [TOKENIZER.vocabulary.bos]
    # What ends the last answer is left out: prepared data closes with end of sequence, whatever the template.
    np.testing.assert_array_equal(ids[:-1], [*begin, *prepared[prepared != begin[0]][:-1]])
    question = encode_turns(TOKENIZER, CHAT[:1], TEMPLATE_OF_END[answer_end])
    np.testing.assert_array_equal(question, TOKENIZER.encode_prompt(CHAT[0].document, "chat"))


def test_sides_take_turns():
    with pytest.raises(DocumentError, match="turn 1 is by 'user': must be by 'assistant'"):
        encode_turns(TOKENIZER, [CHAT[0], CHAT[2]], "meta")
