"""The page at `/`, without a browser: what its files may load, and that they fit together."""

from __future__ import annotations

import dataclasses
import re

import httpx2
import jax
import pytest
from html_page import ADDRESSES, Page
from running import CONFIG, alone, running

from chameleon_jax.serving.page import FILES

TEXTS = {address: content.decode() for address, (content, _) in FILES.items()}
INDEX = Page(TEXTS["/"])
SCRIPTS = {address: text for address, text in TEXTS.items() if address.endswith(".js")}


def test_all_files_are_served_with_their_types_and_a_strict_policy(server):
    kinds = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert {address.partition(".")[2] for address in FILES} == set(kinds)
    for address, (content, _) in FILES.items():
        answer = httpx2.get(server.url + address)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"].startswith(kinds[address.partition(".")[2]])
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy[:2] == ["default-src 'none'", "script-src 'self'"]
        assert not re.search(r"unsafe|http|\*", " ".join(policy))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx2.head(server.url + address).headers["content-length"] == str(len(content))
        again = httpx2.get(server.url + address, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for nowhere in ("/page/", "/page/__init__.py", "/page/../app.py", "/page/page.js/x"):
        assert httpx2.get(server.url + nowhere).status_code == 404
    assert httpx2.post(server.url + "/").status_code == 405


def test_page_is_there_without_a_key_and_nothing_else(model):
    with running(model, keys=("a-key-0123456789",)) as server:
        assert all(httpx2.get(server.url + address).status_code == 200 for address in FILES)
        assert httpx2.get(server.url + "/v1/models").status_code == 401


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_inline():
    named = "http://www.w3.org/2000/svg"  # a name, which is not fetched
    for address, text in TEXTS.items():
        assert not re.search(r"(https?:)?//\w[\w-]*\.\w", text.replace(named, "")), address
        assert not re.search(r"@import|url\(", text) or not address.endswith(".css"), address
    for tag, attributes in INDEX.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    assert not INDEX.all("style", "iframe", "base", "object")
    assert not [text for tag, text in INDEX.texts if tag == "script"]
    for address, script in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script), (
            address
        )


def test_files_that_are_named_exist():
    named = {f"/{each[name]}" for _, each in INDEX.elements for name in ADDRESSES & each.keys()}
    assert named == {"/page/style.css", "/page/page.css", "/page/page.js", "/page/icon.svg"}
    imported = {f"/page/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert named | imported | {"/"} == set(FILES)
    ids = [each["id"] for _, each in INDEX.elements if "id" in each]
    assert len(ids) == len(set(ids))
    used = {name for text in SCRIPTS.values() for name in re.findall(r'(?:byId\("|querySelector\("#)([\w-]+)', text)}
    assert used <= set(ids)


def test_page_can_be_read_aloud():
    assert INDEX.text_of("title") == INDEX.text_of("h1") == ["Chameleon"]
    assert [each["lang"] for each in INDEX.all("html")] == ["en"]
    assert {each.get("name") for each in INDEX.all("meta")} == {None, "viewport"}
    (log,) = (each for each in INDEX.all("section") if each.get("role") == "log")
    assert log["aria-live"] == "polite"
    labels = [each.get("for") for each in INDEX.all("label")]
    for field in INDEX.all("textarea"):
        assert field["id"] in labels
    for opened in INDEX.all("dialog"):
        assert opened["aria-labelledby"]
    named = re.findall(r"<label[^>]*>[^<]*\w[^<]*<(input|select)", TEXTS["/"])
    assert len(named) == len(INDEX.all("input", "select")) - 1  # but the hidden field of files
    assert all(re.search(r"\w", text) for text in INDEX.text_of("button"))
    assert len(INDEX.text_of("button")) == len(INDEX.all("button"))


def test_style_sheet_has_a_rule_for_every_class_and_a_value_for_every_colour():
    style = TEXTS["/page/style.css"] + TEXTS["/page/page.css"]
    classes = {name for _, each in INDEX.elements for name in (each.get("class") or "").split()}
    for text in SCRIPTS.values():
        classes |= {name for names in re.findall(r'className: "([\w ]+)"', text) for name in names.split()}
    assert classes <= set(re.findall(r"\.([a-z][\w-]*)", style))
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= set(re.findall(r"(--[\w-]+):", style))


@pytest.mark.parametrize("template", [None, "meta"])
def test_models_say_what_the_page_needs(model, template):
    own = alone(model)
    own.chat_template = template
    config = dataclasses.replace(CONFIG, examples=("Once upon a time",))
    with running(own, config) as server, server.client() as client:
        (known,) = client.models.list().data
    assert known.parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert (known.conversations, known.examples) == (template is not None, ["Once upon a time"])
    assert known.defaults == {
        "temperature": 1.5, "top_p": 1.0, "max_tokens": 24, "image_temperature": 1.5, "guidance": 3.0,
    }  # fmt: skip
    used = {name for text in SCRIPTS.values() for name in re.findall(r"\bmodel\.(\w+)", text)}
    assert used <= set(known.model_dump())
