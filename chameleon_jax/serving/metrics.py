"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from chameleon_jax.generation.answer import Answer
    from chameleon_jax.generation.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Figures of one server, apart from those of others in the process."""

    def __init__(self, engine: Engine):
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(engine))
        self._requests = Counter("chameleon_requests", "Requests.", ("path", "status"), registry=registry)
        self.under_way = Gauge(
            "chameleon_requests_under_way", "Requests that have no whole response.", registry=registry
        )
        self._tokens = Counter("chameleon_tokens", "Tokens written, of whole answers.", ("kind",), registry=registry)
        self._pictures = Counter("chameleon_pictures", "Pictures.", ("direction",), registry=registry)
        self._answers = Counter("chameleon_answers", "Answers that ended, and why.", ("reason",), registry=registry)
        self._first = Histogram(
            "chameleon_time_to_first_token_seconds", "From a place in the queue to the first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "chameleon_answer_seconds", "From a place in the queue to the last token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def responded(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def read(self, pictures: int) -> None:
        self._pictures.labels("read").inc(pictures)

    def wrote(self, answer: Answer) -> None:
        self._answers.labels(answer.reason).inc()
        self._tokens.labels("text").inc(answer.text_tokens)
        self._tokens.labels("image").inc(len(answer.ids) - answer.text_tokens)
        self._pictures.labels("written").inc(len(answer.pictures))
        self._first.observe(answer.seconds_to_first)
        self._whole.observe(answer.seconds)

    def left(self, answers: int) -> None:
        """Some answers were given up before they were whole."""
        self._answers.labels("cancelled").inc(answers)


class _EngineCollector:
    """Reads an engine whenever it is asked."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, statistics = self._engine, self._engine.statistics
        for name, text, value in (
            ("rows", "Answers that can be written at once.", engine.rows),
            ("rows_taken", "Answers that are being written.", engine.running),
            ("queue", "Answers that wait for a row.", engine.waiting),
        ):
            yield GaugeMetricFamily(f"chameleon_{name}", text, value=value)
        for name, text, value in (
            ("engine_tokens", "Tokens written; its rate is tokens a second.", statistics.tokens),
            ("engine_steps", "Steps of all rows together.", statistics.steps),
            ("engine_busy_row_steps", "Steps in which a row was busy, summed over rows.", statistics.busy_row_steps),
            ("prompt_tokens", "Tokens of prompts.", statistics.prompt_tokens),
            ("prompt_tokens_reused", "Tokens of prompts that were read before.", statistics.prompt_tokens_reused),
        ):
            yield CounterMetricFamily(f"chameleon_{name}", text, value=value)
