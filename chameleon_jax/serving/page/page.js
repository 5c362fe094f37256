// The page: a conversation with the model of this server.

import { Answer } from "./answer.js";
import * as api from "./api.js";
import * as code from "./code.js";
import * as composer from "./composer.js";
import * as drawing from "./drawing.js";
import { button, byId, element, picture, say } from "./elements.js";
import { examplesFor } from "./examples.js";
import * as looking from "./looking.js";
import * as options from "./options.js";
import { answerTo, formOf, requestFor } from "./requests.js";

let model;
let turns = []; // of the conversation: {role, parts}
const running = new Set(); // an AbortController for each request under way
let follows = false; // whether the end of an answer stays in view while it is written

// ---------------------------------------------------------------------------------------------------------------------
// A turn
// ---------------------------------------------------------------------------------------------------------------------

async function send() {
  const wanted = options.read();
  if (running.size || !wanted) return;
  const parts = composer.read(wanted.form === "continue");
  const onlyWords = parts.every((part) => part.type === "text");
  const problem = !parts.length ? "Write something first."
    : wanted.form === "draw" && !onlyWords ? "A description has words alone; choose another of the options to show a picture."
    : "";
  if (problem) return complain(problem);
  composer.clear();
  byId("options").open = false;
  byId("examples").hidden = true;
  byId("restart").hidden = false;
  byId("conversation").append(asked(parts));
  const turn = { role: "user", parts };
  const inConversation = wanted.form === "chat";
  if (inConversation) turns.push(turn);
  await answer(requestFor(inConversation ? turns : [turn], wanted, model), inConversation);
}

/** Shows the answer to a request below all others. */
async function answer(request, inConversation) {
  const before = turns;
  const shown = element("article", { className: "answer" });
  const place = element("div");
  shown.append(place);
  byId("conversation").append(shown);
  const written = new Answer(place);
  say("Writing");
  follows = true;
  scrollToEnd();
  const problem = await whileRunning((signal) => written.follow(answerTo(request, signal)), shown);
  if (inConversation && turns === before) {
    if (problem && !written.parts.length) turns.pop(); // nothing was answered
    else turns.push({ role: "assistant", parts: written.parts });
  }
  if (written.seed !== undefined) shown.append(...below(written, request, inConversation));
  say(problem ? "" : written.reason ? "The answer is whole." : "Stopped."); // a problem is an alert, which is heard
  await Promise.allSettled([...shown.querySelectorAll("img")].map((image) => image.decode())); // now they have a height
  if (follows) scrollToEnd();
  follows = false;
}

const scrollToEnd = () => scrollTo(0, document.documentElement.scrollHeight);

/** Runs something that the stop button ends. Returns the problem that ended it, which is shown in `place`. */
async function whileRunning(work, place) {
  const controller = new AbortController();
  running.add(controller);
  showRunning();
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") {
      const message = error instanceof api.Problem ? error.message : `This page made a mistake: ${error.message}`;
      place.append(element("p", { className: "problem", role: "alert", textContent: message }));
      return message;
    }
    place.append(element("p", {}, element("small", { textContent: "Stopped." })));
  } finally {
    running.delete(controller);
    showRunning();
  }
}

function showRunning() {
  const [shown, hidden] = running.size ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const focused = document.activeElement === hidden;
  [shown.hidden, hidden.hidden] = [false, true];
  if (focused) shown.focus();
}

const stop = () => running.forEach((controller) => controller.abort());

function asked(parts) {
  const shown = parts.map((part, number) =>
    part.type === "text" ? element("p", { className: "text", textContent: part.text }) : picture(part.image_url.url, `Picture in your message, part ${number + 1}`),
  );
  return element("article", { className: "asked", "aria-label": "You" }, ...shown);
}

function complain(message) {
  const old = document.querySelector("#composer .problem");
  old?.remove();
  const shown = element("p", { className: "problem", role: "alert", textContent: message });
  byId("composer").prepend(shown);
  byId("prompt").addEventListener("input", () => shown.remove(), { once: true });
  byId("prompt").focus();
}

// ---------------------------------------------------------------------------------------------------------------------
// What can be done with an answer
// ---------------------------------------------------------------------------------------------------------------------

/** What stands below an answer: its seed, and buttons. */
function below(written, request, inConversation) {
  const sent = { ...request, body: { ...request.body, seed: written.seed } };
  const facts = [`seed ${written.seed}`];
  if (written.total) facts.push(`${written.total} of ${model.context_length} tokens used`);
  if (model.conversations && !inConversation) facts.push("not part of the conversation");
  if (written.reason === "length") facts.push("ended at a limit of length");
  const place = element("div", { className: "looking" });
  const views = [];
  /** A button that shows something below the answer, and hides it again. */
  const view = (label, make) => {
    const own = button(label, async () => {
      const open = own.getAttribute("aria-expanded") !== "true";
      place.replaceChildren();
      for (const each of views) each.setAttribute("aria-expanded", each === own && open);
      if (open) await whileRunning((signal) => make(signal), place);
      place.scrollIntoView({ block: "nearest" });
    }, { "aria-expanded": "false" });
    views.push(own);
    return own;
  };
  const show = (...shown) => place.replaceChildren(...shown);
  const buttons = [
    button("Reuse seed", () => {
      options.set("seed", written.seed);
      say(`The next answer has the seed ${written.seed}.`);
    }),
    inConversation && button("Answer again", (event) => again(event.target.closest("article")), { className: "again" }),
    written.hasText && view("Tokens", async (signal) => show(...(await looking.tokens(written, sent, signal)))),
    written.pictures.length && view("Codes", async (signal) => show(...(await looking.codes(written, model, signal)))),
    written.pictures.length &&
      view("Guidance on/off", async (signal) => {
        const compared = looking.guidance(written, sent, model, signal);
        show(...compared.shown);
        await compared.running;
      }),
    button("As curl", () => code.show("The request as curl", code.asCurl(sent))),
    button("As Python", () => code.show("The request as Python", code.asPython(sent))),
  ];
  return [
    element("p", { className: "facts" }, element("small", { textContent: facts.join(" · ") })),
    element("div", { className: "buttons quiet" }, ...buttons.filter(Boolean)),
    place,
  ];
}

/** Another answer to the last turn of a conversation, in the place of this one. */
function again(shown) {
  if (running.size) return;
  if (turns.at(-1)?.role === "assistant") turns.pop();
  const wanted = options.read();
  if (!wanted || !turns.length) return;
  shown.remove();
  answer(requestFor(turns, { ...wanted, form: "chat" }, model), true);
}

function restart() {
  stop();
  turns = [];
  byId("conversation").replaceChildren();
  byId("examples").hidden = false;
  byId("restart").hidden = true;
  byId("prompt").focus();
}

// ---------------------------------------------------------------------------------------------------------------------
// The model
// ---------------------------------------------------------------------------------------------------------------------

const count = (number) =>
  number.toLocaleString("en", { notation: number < 1e6 ? "standard" : "compact", compactDisplay: "long", maximumSignificantDigits: 2 });

/** What the model can do, and what not. */
function describe() {
  const { id, context_length, input_modalities, output_modalities, image, parameters, conversations } = model;
  const reads = input_modalities.includes("image");
  const draws = output_modalities.includes("image");
  const size = image && image.size.replace("x", " × ");
  const able = reads && draws ? `reads and writes text and pictures of ${size} pixels`
    : reads ? "reads text and pictures, and writes text; it cannot draw"
    : draws ? `reads text, and writes text and pictures of ${size} pixels`
    : "reads and writes text; it knows no pictures";
  byId("about").replaceChildren(element("b", { textContent: id }), ` ${able}.`);
  const limits = [
    `It has ${count(parameters)} parameters${parameters < 1e9 ? ", which is small: beyond what it was trained on, expect nonsense" : ""}.`,
    conversations ? "" : "It was not trained on conversations: it continues what you write.",
    `${conversations ? "A conversation" : "What you write and what follows"} may have ${context_length.toLocaleString("en")} tokens` +
      (image ? `, of which a picture takes ${(image.codes + 2).toLocaleString("en")}.` : "."),
    "What it says may be wrong, and what it draws need not exist.",
  ];
  byId("limits").textContent = limits.filter(Boolean).join(" ");
  byId("limits").hidden = false;
}

function offerExamples() {
  const offered = examplesFor(model).map(({ label, parts, form }) =>
    button(label, () => {
      composer.fill(parts);
      options.set("form", form);
      send();
      options.set("form", formOf(model));
    }),
  );
  byId("examples").append(element("p", { textContent: "For instance:" }), element("div", { className: "buttons" }, ...offered));
  byId("examples").hidden = !offered.length;
}

/** Has a key entered, once at a time. */
function askForKey(problem) {
  const dialog = byId("key-dialog");
  byId("key-problem").textContent = problem;
  byId("key-problem").hidden = !problem;
  byId("change-key").hidden = false;
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

async function start() {
  api.onKeyNeeded(askForKey);
  byId("key-dialog").addEventListener("cancel", (event) => event.preventDefault());
  byId("key-dialog").querySelector("form").addEventListener("submit", () => {
    api.setKey(byId("key").value.trim());
    byId("key").value = "";
  });
  byId("change-key").addEventListener("click", () => askForKey(""));
  byId("change-key").hidden = !api.hasKey();
  try {
    [model] = (await (await api.call("v1/models")).json()).data;
  } catch (error) {
    byId("about").textContent = error.message;
    return;
  }
  describe();
  options.prepare(model);
  composer.prepare(model, complain);
  drawing.prepare(composer.add);
  offerExamples();
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (!plain || matchMedia("(pointer: coarse)").matches) return; // telephones have no Shift
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  });
  document.addEventListener("wheel", () => (follows = false), { passive: true });
  document.addEventListener("touchmove", () => (follows = false), { passive: true });
  new ResizeObserver(() => follows && scrollToEnd()).observe(byId("conversation"));
  byId("stop").addEventListener("click", stop);
  byId("restart").addEventListener("click", restart);
  byId("close-code").addEventListener("click", () => byId("code").close());
  byId("send").disabled = false;
}

start();
