"""`chameleon compare`: has two models answer the same prompts for people to judge, and counts what these say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from chameleon_jax.config import CompareOptions, CompareReportCommand, ConfigError, GenerationConfig
from chameleon_jax.console.terminal import print_warnings
from chameleon_jax.errors import FileError, printable
from chameleon_jax.evaluation.comparison import answer, identity, inputs, key_of, pair_up, read_prompts
from chameleon_jax.evaluation.judgements import FULFILLED, read_all, read_key
from chameleon_jax.evaluation.judgements import report as count
from chameleon_jax.pages.comparison import comparison_page
from chameleon_jax.runtime.cloud import as_path
from chameleon_jax.runtime.files import write_json, write_text
from chameleon_jax.runtime.folders import check_writable
from chameleon_jax.runtime.progress import console
from chameleon_jax.weights.formats import open_checkpoint


def compare(generation: GenerationConfig, options: CompareOptions, *, a: str, b: str, output: str) -> dict[str, Any]:
    """Has both models answer the prompts, one model after the other, and writes the page and its key.

    Raises:
      FileError: if the folder has the key of another comparison, whose judgements would become useless without it.
    """
    folder = as_path(output)
    check_writable(folder)
    prompts = read_prompts(options.prompts)
    names, models = (a, b), []
    for name in names:
        checkpoint = open_checkpoint(name)
        print_warnings(checkpoint.warnings)
        models.append(identity(name, checkpoint))
    if models[0] == models[1]:
        raise ConfigError(f"B = {b!r}: must be another model than A")
    made_of, key_file = inputs(models, prompts, generation), folder / "key.json"
    before = read_key(str(key_file)) if key_file.exists() else None
    stays = f"{key_file}: is of another comparison, whose judgements need it; choose another --output"
    if before and before.get("inputs") != made_of:
        raise FileError(stays)
    answers = [
        answer(name, model, prompts, generation, folder / "answers") for name, model in zip(names, models, strict=True)
    ]
    pairs = pair_up(prompts, answers, made_of)
    key = key_of(pairs, names, made_of)
    if before and before["comparison"] != key["comparison"]:  # answers were removed, and others generated
        raise FileError(stays)
    write_json(key_file, key)
    content = comparison_page(pairs, key["comparison"])
    write_text(folder / "compare.html", content)
    size = len(content.encode()) / 1e6
    console.print(f"give {folder / 'compare.html'} ({size:,.1f} MB) to those who judge, and keep {key_file} from them")
    return {"prompts": len(prompts), "page": folder / "compare.html", "key": key_file}


def report(command: CompareReportCommand, *, key: str, judgements: Sequence[str]) -> dict[str, Any]:
    """Prints what people said of a comparison."""
    if not judgements:
        raise ConfigError("JUDGEMENTS are missing; give the files that people saved from the page")
    known = read_key(key)
    found = count(known, read_all(judgements, known))
    if command.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return {}
    return dict(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The report for people."""
    yield "people", ", ".join(map(printable, found["people"]))
    yield "prompts judged", f"{found['prompts_judged']:,} of {found['prompts']:,}"
    for letter, name in zip("AB", found["models"], strict=True):
        yield f"model {letter}", printable(name)
    yield "A wins, ties, loses", f"{found['wins']:,}, {found['ties']:,}, {found['losses']:,}"
    yield "win rate of A, ties count half", _percent(found["win_rate"])
    for letter, shares in zip("AB", found["fulfilled"], strict=True):
        for level in FULFILLED:
            yield f"{letter} fulfils the task: {level}", _percent(shares[level])
    for name, said in (("alpha_better", "which is better"), ("alpha_fulfilled", "fulfilment")):
        alpha = found[name]
        yield f"Krippendorff's alpha, {said}", "not defined" if alpha is None else f"{alpha:.3f}"


def _percent(share: dict[str, float] | None) -> str:
    if share is None:
        return "nothing was judged"
    return f"{share['share']:.1%} (95 % interval {share['low']:.1%} to {share['high']:.1%})"
