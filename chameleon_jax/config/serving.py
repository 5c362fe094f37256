"""Serving: who may ask for what, and how much of it."""

from __future__ import annotations

from typing import Literal

from chameleon_jax.config.generation import EngineConfig, GenerationConfig
from chameleon_jax.config.reading import config, require


@config
class LimitsConfig:
    """What one request, one client and all of them together may take. What is above a limit is refused with the status
    named here."""

    body_bytes: int = 32 << 20
    """Bytes of the body of a request; 413."""
    bodies_bytes: int = 1 << 30
    """Bytes of the bodies of all requests under way; 503."""
    body_seconds: float = 30.0
    """Time for a body to arrive; 408."""
    pictures: int = 16
    """Pictures in a request; 413."""
    pixels: int = 32 << 20
    """Pixels of a picture; 413. Its size is read before it is decoded."""
    characters: int = 400_000
    """Characters of text in a request; 413."""
    samples: int = 8
    """Answers to one request (`n`, times the prompts); 400."""
    new_tokens: int = 4096
    """Tokens of text in an answer. Requests may ask for more, and get this many."""
    seconds: float = 600.0
    """Time for an answer, from its place in the queue on; 504."""
    per_client: int = 16
    """Answers that a client may have under way, by its key or else its address; 429."""
    requests: int = 256
    """Requests under way, with those whose bodies still arrive; 503. Also of `engine.queue`, which counts answers."""

    def __post_init__(self):
        for name in (
            "body_bytes",
            "bodies_bytes",
            "pixels",
            "characters",
            "samples",
            "new_tokens",
            "per_client",
            "requests",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        require(self.pictures >= 0, "pictures", self.pictures, "must be 0 or more")
        for name in ("body_seconds", "seconds"):
            require(0 < getattr(self, name) <= 86_400, name, getattr(self, name), "must be from 0 to 86,400 seconds")


@config
class ServeConfig:
    """`chameleon serve`."""

    host: str = "127.0.0.1"
    """Address to listen at. By default only this machine can reach it; 0.0.0.0 listens to all networks, and asks for
    keys."""
    port: int = 8000
    """Port to listen at; 0: any that is free."""
    name: str = ""
    """What clients call the model. Default: the name of its folder."""
    keys: str = ""
    """File with the keys of clients, one a line; clients send one as `Authorization: Bearer KEY`. The variable
    CHAMELEON_KEYS may hold some too, with commas between them."""
    open: bool = False
    """Serve other machines without keys."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched by address. Default: none, as pictures come inside requests."""
    origins: tuple[str, ...] = ()
    """Web pages of other servers that may use this one from a browser, as https://example.org."""
    proxies: tuple[str, ...] = ()
    """Addresses of reverse proxies whose X-Forwarded-For is believed."""
    pictures_in: Literal["content", "images"] = "content"
    """Where chat answers have their pictures. 'content': a list of parts in order. 'images': beside the text, as
    some clients want. Requests may choose."""
    system: Literal["refuse", "first_turn"] = "refuse"
    """System turns, which no Chameleon model was trained on. 'first_turn': put before the user's first turn."""
    examples: tuple[str, ...] = ()
    """Prompts that the page offers to begin with. Default: some by what the model can do."""
    edits: bool = False
    """Answer /v1/images/edits: for models trained on a picture, what to change, and the changed picture."""
    log: Literal["nothing", "requests", "prompts"] = "requests"
    """'requests': a line for each, without what it says. 'prompts': what it says too."""
    drain_seconds: float = 30.0
    """After SIGTERM or Ctrl-C answers under way have so long to finish."""
    generation: GenerationConfig = GenerationConfig()
    """What holds for requests that do not say otherwise."""
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()

    def __post_init__(self):
        require(0 <= self.port < 65_536, "port", self.port, "must be from 0 to 65,535")
        require(bool(self.host), "host", self.host, "must be an address, such as 127.0.0.1")
        require(0 <= self.drain_seconds <= 86_400, "drain_seconds", self.drain_seconds, "must be from 0 to 86,400")
        for origin in self.origins:
            require(
                origin.startswith(("http://", "https://")), "origins", origin, "must begin with https:// or http://"
            )
        for host in self.image_hosts:
            require("/" not in host and ":" not in host, "image_hosts", host, "must be the name of a host alone")
