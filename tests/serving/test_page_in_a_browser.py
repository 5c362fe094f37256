"""The page at `/` in Chromium: what a person does and sees."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from running import CONFIG, EngineConfig, alone, running, small_model
from test_chat_completions import read
from test_serving import idle, until
from tiny_models import random_picture

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SHOTS = os.environ.get("CHAMELEON_TEST_SCREENSHOTS")  # a folder where screenshots are kept, to be looked at
TEXT = "What is <script>alert(1)</script><b>this</b>?"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium: none of {', '.join(NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if subprocess.run([CHROMIUM, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{CHROMIUM} does not start")  # such as a stand-in that wants to be installed first
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def served(model):
    own = alone(model)
    own.chat_template = "meta"
    with running(own, dataclasses.replace(CONFIG, engine=EngineConfig(rows=4, queue=8, steps=1))) as server:
        yield server


@contextlib.contextmanager
def opened(browser, server, width: int, **options):
    """A page of its own, on which nothing may go wrong."""
    context = browser.new_context(viewport={"width": width, "height": 844}, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, wrong = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda each: None if each.url.startswith((server.url, "data:")) else wrong.append(each.url))
    page.goto(server.url)
    yield page, wrong
    context.close()


def drop(page, name: str, content: bytes) -> None:
    """Drops a file on the page."""
    page.evaluate(
        """([name, content]) => {
          const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, {type: "image/png"}));
          for (const kind of ["dragover", "drop"])
            document.getElementById("prompt").dispatchEvent(
              new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        [name, base64.b64encode(content).decode()],
    )


def png(seed: int = 1) -> bytes:
    file = io.BytesIO()
    random_picture(seed).save(file, "PNG")
    return file.getvalue()


def shot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def whole(page) -> None:
    page.locator("#send").wait_for(state="visible")


def answer_with_both(server) -> tuple[int, list]:
    """A seed with which the answer to TEXT and a picture has text and a picture, and that answer's parts."""
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": TEXT}]
    messages = [{"role": "user", "content": content}]
    with server.client() as client:
        for seed in range(20):
            found = client.chat.completions.create(
                model="tiny", messages=messages, seed=seed, extra_body={"modalities": ["text", "image"]}
            )
            parts = read(found.choices[0].message.content)
            if {str} < set(map(type, parts)):
                return seed, found.choices[0].message.content
    raise AssertionError("no answer with text and a picture")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_conversation_with_a_dropped_picture(browser, served, width, scheme, monkeypatch):
    seed, expected = answer_with_both(served)
    with opened(browser, served, width, color_scheme=scheme) as (page, wrong):
        page.locator("#examples button").first.wait_for()
        shot(page, f"{width}-start")
        drop(page, "words.png", b"no picture")
        page.get_by_text("words.png: this browser cannot read it as a picture.").wait_for()
        drop(page, "noise.png", png())
        page.locator("#attached img").wait_for()
        page.keyboard.type(TEXT)  # the cursor is in the message
        page.locator("summary").click()
        page.locator("[name=seed]").fill(str(seed))
        shot(page, f"{width}-options")
        page.keyboard.press("Enter")
        whole(page)

        asked, answer = page.locator("article.asked"), page.locator("article.answer")
        assert asked.locator(".text").text_content() == TEXT
        assert asked.locator("img").count() == 1
        shown = answer.locator("> div > p.text, > div > figure img").evaluate_all(
            "(all) => all.map((each) => each.src ?? each.textContent)"
        )
        assert shown == [part["image_url"]["url"] if "image_url" in part else part["text"] for part in expected]
        assert f"seed {seed} · " in answer.locator(".facts").text_content()
        shot(page, f"{width}-answer")

        page.locator("[name=seed]").evaluate("(field) => (field.value = '')")
        monkeypatch.setattr(served.service.engine, "_step", slowly(served.service.engine._step))
        page.locator("#prompt").fill("And then?")
        page.keyboard.press("Enter")
        until(lambda: served.service.engine.running)
        page.locator("#stop").click()
        whole(page)
        until(lambda: idle(served))
        assert page.get_by_text("Stopped.", exact=True).count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert wrong == []


def slowly(step):
    def slow() -> None:
        time.sleep(0.1)
        step()

    return slow


def test_answer_can_be_looked_at_and_asked_for_again(browser, served, capsys):
    seed, _ = answer_with_both(served)
    with opened(browser, served, 1280) as (page, wrong):
        page.locator("#file").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": png()})
        page.locator("#attached img").wait_for()
        page.locator("#prompt").press("End")
        page.keyboard.type(TEXT)
        page.locator("summary").click()
        page.locator("[name=seed]").fill(str(seed))
        page.locator("#send").click()
        whole(page)
        answer = page.locator("article.answer")

        answer.get_by_role("button", name="Tokens").click()
        tokens = answer.locator(".likely code").all_text_contents()
        written = "".join(answer.locator("> div > p.text").all_text_contents())
        assert len("".join(tokens)) >= len(written) > 0
        shot(page, "tokens")
        answer.get_by_role("button", name="Codes").click()
        answer.locator("canvas").first.focus()
        page.keyboard.press("ArrowDown")
        assert answer.locator(".coded p").first.text_content().startswith("Row 2, column 1: code ")
        shot(page, "codes")
        answer.get_by_role("button", name="Guidance on/off").click()
        whole(page)
        assert answer.locator("h3").all_text_contents() == ["Without guidance", "With guidance of 3"]
        assert answer.locator(".versions .problem").count() == 0
        shot(page, "guidance")

        def copied(label: str) -> str:
            answer.get_by_role("button", name=label).click()
            page.locator("#copy-code").click()
            page.get_by_text("Copied").wait_for()
            page.keyboard.press("Escape")
            return page.evaluate("navigator.clipboard.readText()")

        exec(copied("As Python"), {})
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (
            "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"]) == written
        )
        if shutil.which("curl"):
            sent = copied("As curl")
            done = subprocess.run(["bash", "-c", sent], capture_output=True, text=True, timeout=60, check=True)
            events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
            found = "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"])
            assert found == written
        assert wrong == []


def test_what_is_continued_or_drawn_stands_apart_from_the_conversation(browser, served):
    with opened(browser, served, 390) as (page, wrong):
        page.get_by_role("button", name="Continue: A blue circle").click()
        whole(page)
        answer = page.locator("article.answer").last
        assert "not part of the conversation" in answer.locator(".facts").text_content()
        answer.get_by_role("button", name="Tokens").click()
        answer.locator(".likely li").first.wait_for()
        page.locator("summary").click()
        page.locator("[name=form]").select_option("draw")
        page.locator("[name=negative_prompt]").fill("Once")
        page.locator("#prompt").fill("A circle")
        page.locator("#send").click()
        whole(page)
        assert page.locator("article.answer").last.locator("img").count() == 1
        page.locator("summary").click()
        page.locator("[name=form]").select_option("chat")
        page.locator("[name=top_p]").fill("7")
        page.locator("#prompt").fill("Once")
        page.locator("#send").click()  # nothing is sent that the server would refuse
        assert page.locator("article.asked").count() == 2
        page.locator("[name=top_p]").fill("")
        page.locator("#prompt").fill("Once " * 300)
        page.locator("#send").click()
        page.locator("article .problem").wait_for()
        assert "context_length" in page.locator("article .problem").text_content()
        wrong = [each for each in wrong if "400" not in each]  # which the browser notes
        assert wrong == []


def test_server_that_goes_away_is_said(browser, served, monkeypatch):
    with opened(browser, served, 390) as (page, _):
        page.locator("#examples button").first.wait_for()
        monkeypatch.setattr(served.service.engine, "_step", slowly(served.service.engine._step))
        page.locator("#prompt").fill("Once")
        page.locator("#prompt").press("Enter")
        until(lambda: served.service.engine.running)
        monkeypatch.setattr(served.service, "state", "ready")  # and is so again after this test
        served.loop.call_soon_threadsafe(served.service.stop)
        page.get_by_text("the server is shutting down").wait_for()
        whole(page)
        page.context.set_offline(True)
        page.locator("#prompt").fill("Again")
        page.locator("#prompt").press("Enter")
        page.get_by_text("The server cannot be reached.").wait_for()
        until(lambda: idle(served))


def test_with_the_keyboard_alone(browser, served):
    with opened(browser, served, 390) as (page, wrong):
        page.locator("#examples button").first.wait_for()
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert reached[-5:] == ["prompt", "pick", "draw", "send", "Options"]
        page.locator("#draw").focus()
        page.keyboard.press("Enter")
        for key in ("Space", "ArrowRight", "ArrowDown", "Space"):
            page.keyboard.press(key)
        assert page.locator("#pen").text_content() == "The pen is up."
        page.locator("#use").press("Enter")
        assert page.locator("#prompt").input_value() == "[picture 1] "
        page.keyboard.type("Once")
        page.keyboard.press("Enter")
        whole(page)
        assert page.locator("article.answer .facts").count() == 1
        assert wrong == []


def test_page_asks_for_a_key_once_and_says_what_cannot_be_done(browser):
    key = "a-key-0123456789"
    with running(small_model(draws=False), keys=(key,)) as server, opened(browser, server, 390) as (page, wrong):
        page.locator("#key").fill("another-key-0123456789")
        page.keyboard.press("Enter")
        page.get_by_text("does not know this key").wait_for()
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        page.locator("#send:enabled").wait_for()
        assert all("401" in each for each in wrong)
        assert "cannot draw" in page.locator("#about").text_content()
        assert "not trained on conversations" in page.locator("#limits").text_content()
        assert page.locator("[name=form] option").count() == 2
        page.reload()
        page.locator("#prompt").fill("Once")
        page.locator("#send:enabled").click()
        whole(page)
        assert "seed " in page.locator(".facts").text_content()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
