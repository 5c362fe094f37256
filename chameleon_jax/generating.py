"""The half of `Chameleon` that writes: prompts of documents, answers whole or as they come, conversations."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from chameleon_jax.chat import Chat
from chameleon_jax.config import EngineConfig, ExecutionConfig, GenerationConfig, TransformerConfig, require
from chameleon_jax.document import Document, DocumentError, as_documents
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.answer import Answer
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.engines import Engines
from chameleon_jax.generation.modality import IN_TEXT, place_after
from chameleon_jax.generation.stream import Stream, collect
from chameleon_jax.generation.streaming import DocumentStream
from chameleon_jax.tokens.chat import TEMPLATES, ChatTemplate, Turn
from chameleon_jax.tokens.documents import DocumentTokenizer
from chameleon_jax.tokens.vocabulary import Vocabulary


class CannotDraw(ChameleonError):
    """A picture was asked of a model that has not learned to draw, or has no image decoder."""


class Generating:
    """What `Chameleon` does with prompts."""

    config: TransformerConfig
    _params: Any | None
    execution: ExecutionConfig
    engine_config: EngineConfig
    tokenizer: DocumentTokenizer
    vocabulary: Vocabulary
    why_no_pictures: str | None
    chat_template: ChatTemplate | None
    _engines: Engines

    def generate(
        self,
        document: Document | None = None,
        config: GenerationConfig | None = None,
        *,
        n: int | None = None,
        prompt_ids: Sequence[int] | np.ndarray | None = None,
    ) -> Answer | list[Answer]:
        """What the model writes after a prompt: its continuation, without the prompt.

        Args:
          document: the prompt, a list of texts and pictures; a lone text or picture is one too. An empty one is begin
            of sequence alone.
          config: options; each may be another one in every call without anything being compiled anew.
          n: number of samples, which are given as a list. None: one, by itself.
          prompt_ids: the prompt as ids int32 `[n]`, from begin of sequence on, instead of a document. A model without
            a text tokenizer continues these; its answer has the pictures, and all of it as `ids`.

        Raises:
          DocumentError: if the prompt leaves no room for an answer within the context, or cannot be encoded.
          CannotDraw: if a picture is asked of a model that cannot draw; `why_no_pictures` tells before.
          OutOfMemory: if the device cannot hold so many answers at once.
        """
        answers = collect(self.streams(document, config, n=1 if n is None else n, prompt_ids=prompt_ids))
        return answers[0] if n is None else answers

    def generate_many(
        self, documents: Sequence[Document], config: GenerationConfig | Sequence[GenerationConfig] | None = None
    ) -> list[Answer]:
        """`generate` for several documents at once. Each gets the answer that it would get alone; one that occurs again
        with the same config gets another sample each time.

        Args:
          documents: a list of them; `["one", "two"]` are two documents.
          config: options of all, or a list of one for each.

        Raises:
          DocumentError, CannotDraw, OutOfMemory: as `generate`.
        """
        documents = as_documents(documents)
        configs = [config] * len(documents) if isinstance(config, GenerationConfig | None) else list(config)
        if len(configs) != len(documents):
            raise DocumentError(f"{len(configs)} configs for {len(documents)} documents: give one, or one for each")
        if not documents:
            return []
        configs = [resolved(self, config) for config in configs]
        return collect(self._open(encode_prompts(self, documents, configs), configs))

    def stream(
        self,
        document: Document | None = None,
        config: GenerationConfig | None = None,
        *,
        prompt_ids: Sequence[int] | np.ndarray | None = None,
        preview_every: int = 0,
    ) -> Stream:
        """`generate`, telling of the answer while it is written: an iterator over `chameleon_jax.generation.events`.

        Args:
          preview_every: codes between previews of a picture, each of which takes as long as decoding one; 0: none.
        """
        return self.streams(document, config, prompt_ids=prompt_ids, preview_every=preview_every)[0]

    def streams(
        self,
        document: Document | None = None,
        config: GenerationConfig | None = None,
        *,
        n: int = 1,
        prompt_ids: Sequence[int] | np.ndarray | None = None,
        preview_every: int = 0,
    ) -> list[Stream]:
        """Streams of `n` samples, which are written at the same time whichever is listened to."""
        if (document is None) == (prompt_ids is None):
            raise DocumentError("give a document or prompt_ids" + ", not both" * (document is not None))
        require(n >= 1, "n", n, "must be at least 1")
        config = resolved(self, config)
        if prompt_ids is None:
            (prompt,) = encode_prompts(self, [document], [config])
        else:
            prompt = check_prompt(self, prompt_ids, config)
        return self._open([prompt] * n, [config] * n, preview_every=preview_every)

    def chat(
        self,
        config: GenerationConfig | None = None,
        *,
        template: str | None = None,
        turns: Sequence[Turn] = (),
    ) -> Chat:
        """Begins a conversation: `chat = model.chat(); chat.say(["What is this?", picture])`.

        Args:
          config: options of the answers.
          template: how turns are joined; by default as the model remembers from its training, or else 'meta'. See
            `chameleon_jax/tokens/chat.py`.
          turns: what was said before.

        Raises:
          ConfigError: for a template that there is not.
          DocumentError: if the turns are not the user's and the assistant's by turns.
        """
        template = template or self.chat_template or "meta"
        require(template in TEMPLATES, "template", template, f"must be one of {', '.join(TEMPLATES)}")
        return Chat(self, config or GenerationConfig(), template, turns)

    def drop_params(self) -> None:
        """Frees the parameters, whose copy in the layout that decodes fastest is all that generation needs.

        The model then generates as before, with `engine_config.weights`, `execution.compute_dtype` and the tokenizer as
        they are. Whatever else reads `params` raises `ConfigError`.
        """
        if self._params is not None:
            self.engine([1], [GenerationConfig(mode="text", max_new_tokens=1)])  # makes the copy
            _ = self.why_no_pictures  # looks at the output layer
            self._params = None

    def engine(self, prompts: Sequence[int], configs: Sequence[GenerationConfig]) -> Engine:
        """The engine that serves requests with prompts of these lengths and these configs. It stays, with its memory,
        for later requests of about their number and size.

        Args:
          configs: with modes other than 'auto'.
        """
        writes_text_alone = all(config.mode == "text" for config in configs)
        codes = 1 if writes_text_alone and self.tokenizer.image is None else self.tokenizer.codes_per_image
        lengths = [config.context_length or self.config.context_length for config in configs]
        tokens = [min(length, prompt + longest_answer(config, codes + 2, length))
                  for prompt, config, length in zip(prompts, configs, lengths, strict=True)]  # fmt: skip
        return self._engines.find(
            self.config, self._params, self.vocabulary, codes,
            requests=len(prompts), tokens=max(tokens), context_length=max(lengths), execution=self.execution,
            settings=self.engine_config,
        )  # fmt: skip

    def _open(
        self,
        prompts: Sequence[np.ndarray],
        configs: Sequence[GenerationConfig],
        *,
        preview_every: int = 0,
    ) -> list[Stream]:
        """Hands prompts to the engine, all at once. One that occurs again with an equal config gets another sample."""
        engine = self.engine([len(prompt) for prompt in prompts], configs)
        occurred: collections.Counter[tuple[bytes, GenerationConfig]] = collections.Counter()
        streams = []
        for prompt, config in zip(prompts, configs, strict=True):
            key = prompt.tobytes(), config
            document = DocumentStream(self.tokenizer, prompt, config.stop, preview_every=preview_every)
            streams.append(Stream(engine.submit(prompt, config, sample=occurred[key]), document))
            occurred[key] += 1
        return streams


def longest_answer(config: GenerationConfig, block: int, context_length: int) -> int:
    """Most tokens of an answer where a picture takes `block`; `context_length` where there is no other limit."""
    if config.mode == "image":
        return block
    if config.mode == "text" or config.max_images == 0:
        return config.max_new_tokens
    if config.max_images is None:
        return context_length
    return config.max_new_tokens + config.max_images * block + 1  # a picture is begun only with a token to spare


def resolved(model: Generating, config: GenerationConfig | None) -> GenerationConfig:
    """A config with 'auto' decided and the length of the context filled in.

    Raises:
      CannotDraw: if it asks for pictures from a model that cannot draw.
      DocumentError: if it has stop texts, and the model no text tokenizer.
    """
    config = config or GenerationConfig()
    if config.stop:
        model.tokenizer.need("text")
    mode = config.mode
    if mode != "text":
        why_not = model.why_no_pictures
        if mode == "auto":
            mode = "text" if why_not or config.max_images == 0 else "interleaved"
        elif why_not:
            raise CannotDraw(f"mode = {mode!r}: this model cannot draw: {why_not}")
    length = config.context_length or model.config.context_length
    pictures = None if mode == "text" else config.max_images
    return dataclasses.replace(config, mode=mode, max_images=pictures, context_length=length)


def encode_prompts(
    model: Generating, documents: Sequence[Document], configs: Sequence[GenerationConfig]
) -> list[np.ndarray]:
    """Ids int32 `[n]` of each document, with what form and mode of its config put around them.

    Raises:
      DocumentError: if one leaves no room for an answer; if that is for its pictures alone, before any is computed.
    """
    tokenizer, vocabulary = model.tokenizer, model.vocabulary
    documents = as_documents(documents)
    names = [f"document {number}" for number in range(len(documents))] if len(documents) > 1 else ["the prompt"]
    for name, document, config in zip(names, documents, configs, strict=True):
        pictures = sum(not isinstance(segment, str) for segment in document)
        if pictures:
            _check_room(model, name, pictures * tokenizer.image_block, config, IN_TEXT)
    prompts = []
    for name, ids, config in zip(names, tokenizer.encode_many(documents), configs, strict=True):
        turn = [vocabulary.end_of_turn] if config.form == "chat" else []
        prompts.append(with_begin_image(model, np.concatenate([[vocabulary.bos], ids, turn]), config))
        _check_room(model, name, len(prompts[-1]), config, place_after(vocabulary, prompts[-1]))
    return prompts


def check_prompt(model: Generating, ids: Any, config: GenerationConfig) -> np.ndarray:
    """A prompt given as ids, as int32 `[n]`. Nothing is added but, in mode 'image', a begin of image that is missing.

    Raises:
      DocumentError: if it is none, or leaves no room for an answer.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) == 0:
        raise DocumentError(
            f"prompt_ids of type {ids.dtype} and shape {list(ids.shape)}: expected whole numbers [n], at least one"
        )
    vocabulary = model.vocabulary
    if not 0 <= ids.min() <= ids.max() < vocabulary.size:
        raise DocumentError(f"prompt_ids from {ids.min()} to {ids.max()}: must be from 0 to {vocabulary.size - 1}")
    if ids[0] != vocabulary.bos:
        raise DocumentError(f"prompt_ids begin with {ids[0]}: must begin with begin of sequence, {vocabulary.bos}")
    prompt = with_begin_image(model, ids, config)
    _check_room(model, "the prompt", len(prompt), config, place_after(vocabulary, prompt))
    return prompt


def with_begin_image(model: Generating, ids: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """int32; in mode 'image' the prompt stands in a picture."""
    begins = config.mode == "image" and place_after(model.vocabulary, ids) == IN_TEXT
    return np.concatenate([ids, [model.vocabulary.begin_image] if begins else []]).astype(np.int32)


def _check_room(model: Generating, name: str, tokens: int, config: GenerationConfig, place: int) -> None:
    """Refuses a prompt without room for an answer; says where there is none for a picture that might be drawn.

    Args:
      place: where the prompt ends; see generation/modality.py.
    """
    length = config.context_length
    needed = 1 if place == IN_TEXT else model.tokenizer.codes_per_image + 1 - place
    if tokens + needed > length:
        raise DocumentError(
            f"{name} has {tokens:,} tokens, and an answer needs at least {needed:,}: together more than "
            f"context_length = {length:,}. Shorten it, or raise context_length for a model that was "
            "trained on longer rows"
        )
    if config.mode != "interleaved" or config.max_images == 0 or place != IN_TEXT:
        return
    block = model.tokenizer.image_block
    if length - tokens <= block:
        warnings.warn(
            f"only text is written, as a picture needs room for {block + 1} tokens and the prompt leaves "
            f"{length - tokens} of context_length = {length:,}",
            stacklevel=5,
        )
