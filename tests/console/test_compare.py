"""`chameleon compare`: from prompts to a page, and from what people saved to a report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import weakref

import pytest
from html_page import check_page
from tiny_models import random_picture, scrambled_tokenizer, transformer_for, transformer_params

from chameleon_jax.chameleon import Chameleon, load
from chameleon_jax.config import GenerationConfig
from chameleon_jax.console.cli import main
from chameleon_jax.evaluation import comparison
from chameleon_jax.pages.comparison import comparison_page

OPTIONS = ("--max-new-tokens", "8")
PROMPTS = ["Which digit is this?", "Tell of <b>sheep</b>.", "Draw one."]
LINES = [json.dumps([PROMPTS[0], {"image": "digit.png"}]), json.dumps({"text": PROMPTS[1]}), json.dumps([PROMPTS[2]])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models and a file of prompts."""
    place = tmp_path_factory.mktemp("compare")
    tokenizer = scrambled_tokenizer()
    config = transformer_for(tokenizer.vocabulary, context_length=128)
    for seed, name in enumerate(("one", "two")):
        params = transformer_params(config, seed=seed)
        Chameleon(config, params, tokenizer, image_head_trained=True).save(place / name)
    random_picture(1).save(place / "digit.png")
    (place / "prompts.jsonl").write_text("\n".join(LINES))
    return place


def compare(folder, output, prompts="prompts.jsonl", more=OPTIONS) -> int:
    words = (str(folder / "one"), str(folder / "two"), "--prompts", str(folder / prompts), "-o", str(output))
    return main(["compare", *words, *more])


@pytest.fixture(scope="module")
def compared(folder):
    assert compare(folder, folder / "out") == 0
    return folder / "out"


def test_answers_are_those_of_the_models_and_stand_where_the_key_says(folder, compared):
    key = json.loads((compared / "key.json").read_text())
    page = check_page((compared / "compare.html").read_text(), scripts=1)
    assert page.text_of("h2") == ["Prompt 1", "Prompt 2", "Prompt 3"]
    documents = comparison.read_prompts(str(folder / "prompts.jsonl"))
    models = [load(folder / name) for name in ("one", "two")]
    shown = iter(page.texts)
    for number, prompt in enumerate(documents, start=1):
        written = [model.generate(prompt.document, GenerationConfig(max_new_tokens=8)) for model in models]
        place = key["prompts"][str(number)]
        for letter in "AB":
            answer = written[place[letter]]
            assert ("h3", f"Answer {letter}") in shown  # in this order
            expected = [segment for segment in answer if isinstance(segment, str) and segment.strip()]
            assert [next(shown)[1] for _ in expected] == expected
    assert key["models"] == [str(folder / "one"), str(folder / "two")]


def test_page_says_nothing_of_the_models(folder, compared):
    source = (compared / "compare.html").read_text()
    for secret in (str(folder), json.loads((compared / "key.json").read_text())["inputs"]):
        assert secret not in source


def test_each_model_is_shown_first_for_half_of_the_prompts():
    prompts = [comparison.Prompt(f"line {number}", [str(number)]) for number in range(20)]
    answers = [[[f"{name}{number}"] for number in range(20)] for name in "ab"]
    drawn = [comparison.pair_up(prompts, answers, made_of) for made_of in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sum(pair.first for pair in drawn[0]) == 10
    for number, pair in enumerate(drawn[0]):
        assert pair.answers == ([f"{'ab'[pair.first]}{number}"], [f"{'ba'[pair.first]}{number}"])


def test_what_was_answered_before_an_interruption_is_not_generated_again(folder, compared, tmp_path, monkeypatch):
    generated = []
    write = comparison._write_answer

    def interrupted(file, *rest):
        if len(generated) == 4:
            raise KeyboardInterrupt
        write(file, *rest)
        generated.append(file)

    monkeypatch.setattr(comparison, "_write_answer", interrupted)
    assert compare(folder, tmp_path) == 130
    assert not (tmp_path / "compare.html").exists()
    generated[0].write_text("{")  # as if the disk had been full
    loaded, models = [], []

    def load_alone(name):
        assert not any(model() for model in models), "two models in memory"
        loaded.append(name)
        model = load(name)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(comparison, "_write_answer", lambda file, *rest: (write(file, *rest), generated.append(file)))
    monkeypatch.setattr(comparison, "load", load_alone)
    assert compare(folder, tmp_path) == 0
    assert sorted(generated[4:]) == sorted([generated[0], *{*(tmp_path / "answers").glob("*.json")} - {*generated[:4]}])
    assert compare(folder, tmp_path) == 0
    assert loaded == [str(folder / "one"), str(folder / "two")]  # and for the page alone neither
    assert (tmp_path / "key.json").read_text() == (compared / "key.json").read_text()
    assert (tmp_path / "compare.html").read_text() == (compared / "compare.html").read_text()


def test_key_of_another_comparison_is_never_replaced(folder, compared, capsys):
    key = (compared / "key.json").read_text()
    assert compare(folder, compared, more=("--max-new-tokens", "4")) == 1
    assert "key.json: is of another comparison, whose judgements need it" in capsys.readouterr().err
    assert (compared / "key.json").read_text() == key


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n \n", "empty.txt: holds no prompts; expected one a line"),
        ("empty.jsonl", "", "empty.jsonl: holds no prompts"),
        ("twice.txt", "a\nb\na\n", "twice.txt, line 3: is the same prompt as"),
        ("broken.jsonl", '["a"]\n["a"', "broken.jsonl, line 2: "),
        ("gone.jsonl", '[{"image": "gone.png"}]', "gone.jsonl, line 1: "),
        ("long.txt", "short\n" + "long " * 200, "long.txt, line 2: has "),
        ("bytes.txt", b"\xff\xfe\xfa", "bytes.txt: is no UTF-8 text at byte 0"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(folder, tmp_path, name, content, message, capsys):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert compare(folder, tmp_path / "out", prompts=tmp_path / name) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_line(folder, tmp_path, capsys):
    def says(*words: str) -> str:
        assert main(["compare", *words]) in (1, 2)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    one, prompts = str(folder / "one"), ("--prompts", str(folder / "prompts.jsonl"), "-o", str(tmp_path / "out"))
    assert "must be another model than A" in says(one, one, *prompts)
    assert "is not a model folder" in says(one, str(tmp_path / "gone"), *prompts)
    assert "prompts" in says(one, str(folder / "two"))
    assert "gone.txt: no such file" in says(one, str(folder / "two"), "--prompts", str(tmp_path / "gone.txt"))
    assert "B is missing" in says(one)
    assert "JUDGEMENTS are missing" in says("report", str(tmp_path))


def said(compared, tmp_path, person: str, judgements: dict) -> str:
    comparison_id = json.loads((compared / "key.json").read_text())["comparison"]
    path = tmp_path / f"{person}.json"
    path.write_text(json.dumps({"comparison": comparison_id, "person": person, "judgements": judgements}))
    return str(path)


def test_report_of_two_people(compared, tmp_path, capsys):
    key = json.loads((compared / "key.json").read_text())["prompts"]
    letter = {number: "A" if shown["A"] == 0 else "B" for number, shown in key.items()}  # that of the first model
    both = {number: {"better": letter[number], letter[number]: "fully"} for number in ("1", "2")}
    files = [said(compared, tmp_path, "Anna", both), said(compared, tmp_path, "Ben", {**both, "3": {"better": "tie"}})]
    assert main(["compare", "report", str(compared / "key.json"), *files]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^A wins, ties, loses +2, 1, 0$", printed, re.MULTILINE)
    assert re.search(r"^win rate of A, ties count half +83\.3% \(95 % interval \d", printed, re.MULTILINE)
    assert "nothing was judged" in printed
    assert main(["compare", "report", str(compared / "key.json"), *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["wins"], found["ties"], found["losses"], found["people"]) == (2, 1, 0, ["Anna", "Ben"])


DRIVER = """<script>
const saved = [];
URL.createObjectURL = (file) => { saved.push(file); return "#"; };
HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const shown = () => [...document.querySelectorAll("main > section")].map((each) => Number(!each.hidden)).join("");
const steps = [shown()];
document.getElementById("save").click();  // without a name nothing is saved
steps.push(saved.length, document.activeElement.id);
const person = document.getElementById("person");
person.value = "Zoë Q."; person.dispatchEvent(new Event("input", {bubbles: true}));
document.querySelector('input[name="1 A"][value="partially"]').click();
document.querySelector('input[name="1 B"][value="not"]').click();
press("b");
steps.push(document.getElementById("progress").textContent);
press("n"); press("t"); press("n"); press("n"); press("p");
steps.push(shown(), document.getElementById("next").disabled);
document.getElementById("save").click();
const kept = JSON.parse(localStorage.getItem(localStorage.key(0)));
steps.push(kept.at, kept.judgements["1"].better);
saved[0].text().then((text) => { document.body.textContent = JSON.stringify([steps, text, saved[1]]); });
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_judges_keeps_and_saves(compared, tmp_path):
    page = (compared / "compare.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{DRIVER}</body>"))
    result = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    body = result.stdout.partition("<body>")[2].partition("</body>")[0]
    steps, text, name = json.loads(body)
    assert steps == ["100", 0, "person", "1 of 3 judged", "010", False, 1, "B"]
    assert name == "judgements-Zoë-Q-.json"
    (tmp_path / "said.json").write_text(text)
    assert json.loads(text)["judgements"] == {
        "1": {"A": "partially", "B": "not", "better": "B"},
        "2": {"better": "tie"},
    }
    assert main(["compare", "report", str(compared / "key.json"), str(tmp_path / "said.json")]) == 0


def test_photographs_in_prompts_are_made_smaller_for_the_page():
    photo = random_picture(1, (3000, 1500))
    pair = comparison.Pair(comparison.Prompt("line 1", [photo]), 0, ([], ["an answer"]))
    source = comparison_page([pair], "c0ffee")
    page = check_page(source, scripts=1)
    assert [(each["width"], each["height"]) for each in page.all("img")] == [("512", "256")]
    assert photo.size == (3000, 1500)
    assert "(an empty answer)" in page.text_of("small")
    assert len(source) < 1 << 20
