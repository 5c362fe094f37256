"""`chameleon data`: how much of each source a model will see, and rows to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chameleon_jax.config import ConfigError, TrainConfig, read_config, require
from chameleon_jax.config.yaml_files import read_yaml
from chameleon_jax.console.show import print_rows
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.files import write_text
from chameleon_jax.training.metrics import read_metrics

if TYPE_CHECKING:
    from data_pipeline.config import DataCommand
    from data_pipeline.loader import PreparedData


class Table(NamedTuple):
    title: str
    text: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def data(config: DataCommand, *, what: str, rows: Sequence[str] = ()) -> dict[str, Any]:
    """Prints what each source holds, and what a run reads of it; writes a page of sample rows. With `rows`, prints
    those rows instead."""
    from data_pipeline.loader import PreparedData

    folder, train = _find_rows(what)
    prepared = PreparedData(folder)
    if rows:
        return _print(prepared, config, rows)
    tables = [of_sources(prepared), *(of_run(prepared, train) if train else [])]
    for table in tables:
        print(f"{table.title}\n{in_columns([table.head, *table.rows])}\n")
    page = config.page or f"{str(folder).rstrip('/')}.html"
    if page == "none":
        return {}
    write_page(page, prepared, tables, config.samples)
    return {"page": page}


def show(config: DataCommand, *, data: str, rows: Sequence[str] = ()) -> dict[str, Any]:
    """What `chameleon data --rows` was called before."""
    from data_pipeline.loader import PreparedData

    return _print(PreparedData(data), config, rows or ("0",))


def _print(prepared: PreparedData, config: DataCommand, rows: Sequence[str]) -> dict[str, Any]:
    require(not config.page, "page", config.page, "is written by `chameleon data` without --rows")
    print_rows(prepared, config.source, rows, config.output)
    return {}


def _find_rows(what: str) -> tuple[str, TrainConfig | None]:
    """The folder of rows that a path leads to, and the run, if it is the YAML file of one."""
    from data_pipeline.config import PrepareCommand

    if as_path(what).is_dir():
        return what, None
    values = read_yaml(what)
    if not isinstance(values, dict) or not {"data", "output"} & values.keys():
        raise ConfigError(f"{what}: expected a folder of rows, or the YAML file of `chameleon prepare` or `train`")
    if "model" in values:
        train = read_config(TrainConfig, what)
        return train.data, train
    return read_config(PrepareCommand, what).output, None


def of_sources(prepared: PreparedData) -> Table:
    """What each pool of rows holds, by source."""
    rows, length = [], prepared.sequence_length
    for part in ("sources", "held_out"):
        for name, pool in prepared.header[part].items():
            name = f"held_out.{name}" if part == "held_out" else name
            full = (pool["tokens"] + pool["documents"]) / max(1, pool["rows"] * length)  # each document with its end
            of_rows = (f"{pool['rows']:,}", f"{min(1, full):.1%}")
            sources = pool.get("sources", {})
            rows.append((name, *_amounts(pool), *of_rows))
            rows += [(f"  {source}", *_amounts(entry), "", "") for source, entry in sources.items()]
    head = ("source", "documents", "pictures", "text tokens", "image tokens", "rows", "filled")
    return Table("What was prepared", f"Rows of {length:,} tokens.", head, rows)


def _amounts(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{entry[key]:,}" for key in ("documents", "pictures", "text_tokens", "image_tokens"))


def of_run(prepared: PreparedData, train: TrainConfig) -> list[Table]:
    """What a run reads of each source in each stage; and what it has read so far, if it has begun."""
    from data_pipeline.mixture import token_shares

    mixture = prepared.mixture(train.stages, train.steps, train.batch_size, train.seed)
    head = ("stage", "source", "by weight", "by rows", "text tokens", "image tokens", "epochs")

    def table(title: str, steps: int) -> Table:
        shares = token_shares(prepared.header["sources"], train.stages, mixture, steps * train.batch_size)
        rows = [
            (f"{each.stage + 1}", each.source, f"{each.expected:.1%}", f"{each.actual:.1%}", f"{each.text:,.0f}",
             f"{each.image:,.0f}", f"{each.epochs:,.2f}")
            for each in shares
        ]  # fmt: skip
        said = f"{steps:,} steps of {train.batch_size} rows of {prepared.sequence_length:,} tokens."
        return Table(title, said, head, rows)

    done = min(train.steps, _steps_done(train))
    tables = [table("What training reads", train.steps)]
    return [*tables, table(f"What it has read, up to step {done:,}", done)] if 0 < done < train.steps else tables


def _steps_done(train: TrainConfig) -> int:
    """The last step that the run has logged."""
    path = as_path(train.output) / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.is_file() else 0


def in_columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text in columns, the first to the left, figures to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [not any(cell[:1].isdigit() for cell in column[1:]) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    )


def write_page(path: str | Path, prepared: PreparedData, tables: Sequence[Table], samples: int) -> None:
    """Writes a page of tables and of `samples` rows of each source, evenly spaced."""
    from chameleon_jax.pages.parts import table as to_html
    from chameleon_jax.pages.rows import rows_page

    numbers = {}
    for part, before in (("sources", ""), ("held_out", "held_out.")):
        for name, source in prepared.header[part].items():
            count = min(samples, source["rows"])
            numbers[before + name] = [source["rows"] * nth // count for nth in range(count)]
    sections = [(table.title, table.text, to_html(table.head, table.rows)) for table in tables]
    write_text(path, rows_page(prepared, numbers, sections))
