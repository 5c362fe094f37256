"""What people said of two models' answers is counted as the paper counts it, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest

from chameleon_jax.errors import FileError
from chameleon_jax.evaluation.judgements import read_all, read_judgements, read_key, report

KEY = {
    "comparison": "c0ffee",
    "models": ["out/a", "out/b"],
    "prompts": {"1": {"A": 0, "B": 1}, "2": {"A": 1, "B": 0}, "3": {"A": 0, "B": 1}, "4": {"A": 1, "B": 0}},
}


def saved(path, person: str, judgements: dict, comparison: str = "c0ffee") -> str:
    path.write_text(json.dumps({"comparison": comparison, "person": person, "judgements": judgements}))
    return str(path)


def of(first: str, second: str, better: str) -> dict[str, str]:
    return {"A": first, "B": second, "better": better}


@pytest.fixture
def people(tmp_path):
    """Three people; the last one stopped in the middle of the third prompt."""
    anna = {"1": of("fully", "not", "A"), "2": of("not", "fully", "B"), "3": of("not", "not", "tie"),
            "4": of("fully", "partially", "A")}  # fmt: skip
    ben = {"1": of("fully", "not", "A"), "2": of("not", "partially", "B"), "3": of("fully", "not", "A"),
           "4": of("fully", "not", "A")}  # fmt: skip
    cleo = {"1": of("partially", "not", "tie"), "2": of("fully", "fully", "A"), "3": {"B": "fully"}}
    given = {"Anna": anna, "Ben": ben, "Cleo": cleo}
    return [saved(tmp_path / f"{name}.json", name, said) for name, said in given.items()]


def test_majority_of_each_prompt_counts_and_the_order_of_the_page_does_not(people):
    found = report(KEY, read_all(people, KEY))
    # 1: a, a, tie. 2: a, a, b. 3: tie, a: no majority. 4: b, b.
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert found["win_rate"]["share"] == (2 + 1 / 2) / 4
    assert found["win_rate"]["low"] < 0.625 < found["win_rate"]["high"]
    # a: fully; fully; not, fully: no majority; partially, not: no majority
    assert [found["fulfilled"][0][level]["share"] for level in ("fully", "partially", "not")] == [0.5, 0.5, 0]
    # b: not; not; not, not, fully; fully
    assert [found["fulfilled"][1][level]["share"] for level in ("fully", "partially", "not")] == [0.25, 0, 0.75]
    assert (found["prompts"], found["prompts_judged"], found["people"]) == (4, 4, ["Anna", "Ben", "Cleo"])


def test_alpha_by_hand(people):
    found = report(KEY, read_all(people, KEY))
    # Better is {a a t}, {a a b}, {t a}, {b b}. Unequal pairs, of each unit by its people less one: 4/2 +
    # 4/2 + 2/1 + 0. In all a 5, t 2, b 3, of 10: 5 * 5 + 2 * 8 + 3 * 7 = 62.
    assert found["alpha_better"] == pytest.approx(1 - (2 + 2 + 2) * 9 / 62)


def test_one_person_alone_agrees_with_nobody(people):
    found = report(KEY, read_all(people[:1], KEY))
    assert found["alpha_better"] is None
    assert found["alpha_fulfilled"] is None
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)


def test_nothing_said_is_nothing_counted(tmp_path):
    found = report(KEY, [read_judgements(saved(tmp_path / "a.json", "Anna", {}), KEY)])
    assert found["win_rate"] is None
    assert (found["prompts_judged"], found["fulfilled"][0]["fully"]) == (0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds no judgements; expected a file that the page"),
        ({"comparison": "c0ffee", "person": "A", "judgements": {"1": "A"}}, "holds no judgements"),
        ({"comparison": "decade", "person": "A", "judgements": {}}, "of another comparison .'decade', .* 'c0ffee'"),
        ({"comparison": "c0ffee", "person": " ", "judgements": {}}, "person = ' ': must be a name"),
        ({"comparison": "c0ffee", "person": "A", "judgements": {"5": {}}}, "judges prompt '5'; there are 1 to 4"),
        ({"comparison": "c0ffee", "person": "A", "judgements": {"1": {"A": "very"}}},
         "prompt 1: 'A' = 'very': must be fully, partially, not"),
        ({"comparison": "c0ffee", "person": "A", "judgements": {"1": {"better": ["A"]}}},
         "'better' = .*: must be A, B, tie"),
        ({"comparison": "c0ffee", "person": "A", "judgements": {"1": {"C": "fully"}}},
         "must be one of the names A, B, better"),
    ],
)  # fmt: skip
def test_file_that_is_something_else_is_named(tmp_path, content, message):
    path = tmp_path / "said.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=rf"said.json: .*{message}"):
        read_judgements(str(path), KEY)


def test_person_who_is_there_twice_is_named(people, tmp_path):
    twice = saved(tmp_path / "again.json", "ANNA ", {})
    with pytest.raises(FileError, match=r"again.json: is by 'ANNA', as .*Anna.json is; give one file a person"):
        read_all([*people, twice], KEY)
    with pytest.raises(FileError, match="one file a person"):
        read_all([people[0], people[0]], KEY)


@pytest.mark.parametrize("content", [{}, [], {**KEY, "prompts": {"1": {"A": 0, "B": 0}}}, {**KEY, "models": ["a"]}])
def test_key_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "key.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"key.json: is no key of a comparison"):
        read_key(str(path))
