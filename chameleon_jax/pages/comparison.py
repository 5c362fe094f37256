"""A page on which a person judges the answers of two models, without knowing whose answer is whose."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

from chameleon_jax.document import Document, to_rgb
from chameleon_jax.evaluation.comparison import Pair
from chameleon_jax.evaluation.judgements import BETTER, FULFILLED
from chameleon_jax.pages.parts import Section, img, page

SIDE = 512
"""CSS pixels of a picture on a wide window, and about the pixels of one that is larger."""

_LEAD = """<p>Two answers to each of {count} prompts, in an order that was drawn for each. Say of both how far they
fulfil the task, and which one is better.</p>
<details class='explained'><summary>What the words mean, and keys</summary>
<p><b>Fully</b>: the answer does all that the prompt asks. <b>Partially</b>: it does some of it, or does it with
mistakes. <b>Not</b>: it does not do it, or cannot be understood. Judge pictures and text together. It is a
<b>tie</b> if neither answer is better, whether both are good or both are bad.</p>
<p>Keys: <b>a</b>, <b>b</b> and <b>t</b> say which is better, <b>n</b> and <b>p</b> go to the next and the previous
prompt; Tab and the arrow keys reach everything. What you say is kept in this browser and sent nowhere. Save it at
the end, or in between, as a file, and give that back.</p></details>
<div class="judge" id="judge" data-comparison="{comparison}"><label>Your name <input id="person" maxlength="100"
autocomplete="name"></label><button type="button" id="anew">Start anew</button></div>"""

_CONTROLS = """<div class="controls"><button type="button" id="previous">Previous</button>
<button type="button" id="next">Next</button><span id="progress" role="status"></span>
<button type="button" id="save">Save</button></div>
<noscript>This page needs JavaScript, to keep and save what you say.</noscript>
<script>
{script}</script>"""


def comparison_page(pairs: Sequence[Pair], comparison: str) -> str:
    """The page as HTML. Nothing in it names the models.

    Args:
      comparison: what the key calls it.
    """
    sections = [Section(f"Prompt {number}", "", _body(str(number), pair)) for number, pair in enumerate(pairs, start=1)]
    lead = _LEAD.format(count=len(pairs), comparison=html.escape(comparison, quote=True))
    script = (resources.files("chameleon_jax.pages") / "comparison.js").read_text(encoding="utf-8")
    return page("Which answer is better?", lead, sections, _CONTROLS.format(script=script))


def _body(number: str, pair: Pair) -> str:
    answers = "".join(
        f"<div class='card'><h3>Answer {letter}</h3>{_shown(answer, f'answer {letter}')}"
        f"{_choice(number, letter, f'Does answer {letter} fulfil the task?', FULFILLED)}</div>"
        for letter, answer in zip("AB", pair.answers, strict=True)
    )
    prompt = f"<div class='card task'>{_shown(pair.prompt.document, 'the prompt')}</div>"
    return f"{prompt}<div class='pair'>{answers}</div>{_choice(number, 'better', 'Which answer is better?', BETTER)}"


def _shown(document: Document, whose: str) -> str:
    parts = [
        f"<span>{html.escape(segment)}</span>"
        if isinstance(segment, str)
        else img(_fitted(segment), f"picture in {whose}", SIDE)
        for segment in document
    ]
    return f"<div class='said'>{''.join(parts) or '<small>(an empty answer)</small>'}</div>"


def _fitted(image):
    """A picture of a prompt may be a photograph, and the page holds all of them."""
    image = to_rgb(image)
    if max(image.size) > 2 * SIDE:
        image = image.copy()
        image.thumbnail((2 * SIDE, 2 * SIDE))
    return image


def _choice(number: str, name: str, question: str, values: Sequence[str]) -> str:
    """Radio buttons, whose names say of which prompt and what they tell."""
    buttons = "".join(
        f"<label><input type='radio' name='{number} {name}' value='{value}'>{value}</label>" for value in values
    )
    return f"<fieldset class='choice'><legend>{question}</legend>{buttons}</fieldset>"
