"""What people said of two models' answers: read, checked against the key, and counted."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from chameleon_jax.config.reading import shortened
from chameleon_jax.errors import FileError
from chameleon_jax.evaluation.agreement import krippendorff_alpha, wilson_interval
from chameleon_jax.runtime.files import read_json

FULFILLED = ("fully", "partially", "not")
BETTER = ("A", "B", "tie")
_ALLOWED = {"A": FULFILLED, "B": FULFILLED, "better": BETTER}


class Judgements(NamedTuple):
    """One person's judgements.

    Attributes:
      person: name.
      fulfilled: by prompt and number of the model, how far its answer fulfils the task.
      better: by prompt, the number of the better model, or 'tie'.
    """

    person: str
    fulfilled: dict[tuple[str, int], str]
    better: dict[str, int | str]


def read_key(path: str) -> dict[str, Any]:
    """The key that `chameleon compare` wrote.

    Raises:
      FileError: if the file is something else.
    """
    key = read_json(path)
    try:
        names, prompts = key["models"], key["prompts"]
        whole = bool(key["comparison"]) and len(names) == 2 and len(prompts) > 0
        whole = whole and all({shown["A"], shown["B"]} == {0, 1} for shown in prompts.values())
    except (LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise FileError(f"{path}: is no key of a comparison; expected the key.json that `chameleon compare` wrote")
    return key


def read_judgements(path: str, key: dict[str, Any]) -> Judgements:
    """The judgements that a page saved. Those that the person left out are left out.

    Raises:
      FileError: if the file is something else, of another comparison, or of prompts that the key does not have.
    """
    content = read_json(path)
    given = content.get("judgements") if isinstance(content, dict) else None
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise FileError(f"{path}: holds no judgements; expected a file that the page of a comparison saved")
    if content.get("comparison") != key["comparison"]:
        raise FileError(
            f"{path}: holds judgements of another comparison ({shortened(content.get('comparison'))}, and the key is "
            f"that of {shortened(key['comparison'])})"
        )
    person = content.get("person")
    if not isinstance(person, str) or not person.strip():
        raise FileError(f"{path}: person = {shortened(person)}: must be a name, which tells people apart")
    fulfilled: dict[tuple[str, int], str] = {}
    better: dict[str, int | str] = {}
    for prompt, said in given.items():
        shown = key["prompts"].get(prompt)
        if shown is None:
            raise FileError(f"{path}: judges prompt {shortened(prompt)}; there are 1 to {len(key['prompts'])}")
        for name, value in said.items():
            if value not in _ALLOWED.get(name, ()):
                allowed = ", ".join(_ALLOWED.get(name, ())) or f"one of the names {', '.join(_ALLOWED)}"
                raise FileError(f"{path}: prompt {prompt}: {shortened(name)} = {shortened(value)}: must be {allowed}")
            if name == "better":
                better[prompt] = shown.get(value, "tie")
            else:
                fulfilled[prompt, shown[name]] = value
    return Judgements(person.strip(), fulfilled, better)


def read_all(paths: Sequence[str], key: dict[str, Any]) -> list[Judgements]:
    """Judgements of several people.

    Raises:
      FileError: as `read_judgements`, and if two files are of the same person.
    """
    people: dict[str, str] = {}
    found = []
    for path in paths:
        judgements = read_judgements(path, key)
        name = judgements.person.casefold()
        if before := people.get(name):
            raise FileError(f"{path}: is by {shortened(judgements.person)}, as {before} is; give one file a person")
        people[name] = path
        found.append(judgements)
    return found


def report(key: dict[str, Any], people: Sequence[Judgements]) -> dict[str, Any]:
    """Wins, shares and agreement, as JSON. The two models are told apart by their place in `models`.

    For each prompt the majority of those who judged it counts. Without one it is a tie, and a task is partially
    fulfilled. A tie is half a win. Intervals have 95 % confidence, over the prompts.
    """
    better = _by_unit(person.better for person in people)
    fulfilled = _by_unit(person.fulfilled for person in people)
    votes = [_majority(values, "tie") for values in better.values()]
    wins, losses = votes.count(0), votes.count(1)
    ties = len(votes) - wins - losses
    shares = []
    for model in (0, 1):
        of_model = [_majority(values, "partially") for (_, number), values in fulfilled.items() if number == model]
        shares.append({level: _share(of_model.count(level), len(of_model)) for level in FULFILLED})
    return {
        "comparison": key["comparison"],
        "models": key["models"],
        "people": [person.person for person in people],
        "prompts": len(key["prompts"]),
        "prompts_judged": len(votes),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "win_rate": _share(wins + ties / 2, len(votes)),
        "fulfilled": shares,
        "alpha_better": krippendorff_alpha(better.values()),
        "alpha_fulfilled": krippendorff_alpha(fulfilled.values()),
    }


def _by_unit(of_people: Iterable[dict[Any, Any]]) -> dict[Any, list[Any]]:
    """What all said of each unit."""
    units = collections.defaultdict(list)
    for said in of_people:
        for unit, value in said.items():
            units[unit].append(value)
    return units


def _majority(values: Sequence[Any], otherwise: str) -> Any:
    """What more than half of the people said, if there is such a value."""
    ((value, count),) = collections.Counter(values).most_common(1)
    return value if 2 * count > len(values) else otherwise


def _share(count: float, total: int) -> dict[str, Any] | None:
    """A share and its interval; None of nothing."""
    if not total:
        return None
    low, high = wilson_interval(count, total)
    return {"share": count / total, "low": low, "high": high}
