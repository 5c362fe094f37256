"""`POST /v1/tokenize` and `/v1/detokenize`: documents to ids and back, pictures to codes and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from chameleon_jax.serving.chat import check_pictures
from chameleon_jax.serving.errors import invalid
from chameleon_jax.serving.exchange import service_of
from chameleon_jax.serving.requests import ContentReader, addresses_in, addresses_in_content, turns_of
from chameleon_jax.serving.responses import parts_of
from chameleon_jax.serving.service import Service
from chameleon_jax.serving.wire import DetokenizeRequest, TokenizeRequest
from chameleon_jax.tokens.chat import encode_turns

router = APIRouter()


@router.post("/v1/tokenize", response_model=None)
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """The ids of a content or a conversation, and the codes of its pictures."""
    service = service_of(request)
    service.head(body.model, 0)
    if (body.content is None) == (body.messages is None):
        raise invalid("give content or messages" + ", not both" * (body.content is not None), "content")
    addresses = [*addresses_in(body.messages or []), *addresses_in_content(body.content, "content")]
    fetched = await service.fetch(addresses)
    return await service.in_thread(_tokenized, service, body, fetched)


def _tokenized(service: Service, body: TokenizeRequest, fetched: Mapping[str, bytes]) -> dict[str, Any]:
    model, length = service.model, service.model.config.context_length
    reader = ContentReader(model.tokenizer, service.config.limits, lambda url, place: fetched[url])
    if body.messages is not None:
        turns = turns_of(body.messages, reader, service.config.system)
        check_pictures(service, [segment for turn in turns for segment in turn.document], length)
        ids = encode_turns(model.tokenizer, turns, service.template)
    else:
        document = reader.document(body.content, "content")
        check_pictures(service, document, length)
        bos = [] if body.add_special_tokens is False else [model.vocabulary.bos]
        ids = np.concatenate([bos, model.encode(document)]).astype(np.int32)
    codes = model.vocabulary.code_of_id[ids[model.vocabulary.code_of_id[ids] >= 0]]
    pictures = codes.reshape(-1, model.tokenizer.codes_per_image).tolist() if len(codes) else []
    return {"tokens": ids.tolist(), "count": len(ids), "max_model_len": length, "codes": pictures}


@router.post("/v1/detokenize", response_model=None)
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """The content that ids stand for, or the pictures that codes stand for."""
    service = service_of(request)
    service.head(body.model, 0)
    if (body.tokens is None) == (body.codes is None):
        raise invalid("give tokens or codes" + ", not both" * (body.tokens is not None), "tokens")
    return await service.in_thread(_detokenized, service, body)


def _detokenized(service: Service, body: DetokenizeRequest) -> dict[str, Any]:
    model, limits = service.model, service.config.limits
    if body.codes is not None:
        if len(body.codes) > limits.pictures:
            raise invalid(f"codes: at most {limits.pictures:,} pictures in one request", "codes")
        wanted, most = model.tokenizer.codes_per_image, len(model.vocabulary.image_ids)
        if any(len(codes) != wanted or min(codes) < 0 or max(codes) >= most for codes in body.codes):
            raise invalid(f"codes: a picture has {wanted:,} codes, each from 0 to {most - 1:,}", "codes")
        document = model.detokenize_images(np.array(body.codes, np.int32).reshape(-1, wanted)) if body.codes else []
    else:
        length = model.config.context_length
        if len(body.tokens) > length:
            raise invalid(f"tokens: {len(body.tokens):,} ids: at most {length:,}, the context_length", "tokens")
        document = model.decode(body.tokens)
    text = "".join(segment for segment in document if isinstance(segment, str))
    return {"prompt": text, "content": parts_of(document)}
