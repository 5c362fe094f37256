// Looking at an answer: its tokens with their probabilities, the codes of its pictures, guidance on and off.

import { Answer } from "./answer.js";
import { call } from "./api.js";
import { element } from "./elements.js";
import { answerTo, imagePart, withGuidance } from "./requests.js";

const LARGEST = 384; // pixels of a picture with its codes
const note = (text) => element("p", {}, element("small", { textContent: text }));

/**
 * The tokens of a text; the fuller the bar below one, the likelier it was.
 * @param request with the answer's seed: streams of continuations have no tokens, so that one is written once more.
 */
export async function tokens(answer, request, signal) {
  let found = answer.tokens;
  if (!found.length) {
    const { stream, stream_options, partial_images, ...body } = request.body;
    const [choice] = (await (await call(request.path, { ...body, logprobs: 0 }, signal)).json()).choices;
    const { tokens: words, token_logprobs: logprobs } = choice.logprobs;
    found = words.map((token, place) => ({ token, logprob: logprobs[place] }));
  }
  const shown = found.map(({ token, logprob }) => {
    const share = Math.exp(logprob);
    const percent = share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`;
    const bar = element("span", { className: "share" });
    bar.style.inlineSize = `${100 * share}%`;
    return element(
      "li", {}, element("code", { textContent: token.replaceAll(" ", "·").replaceAll("\n", "↵") || "∅" }),
      element("small", { textContent: percent }), bar,
    );
  });
  return [
    note("How likely the model found each token of text that it wrote, before temperature. · is a space, ↵ the end of a line."),
    element("ol", { className: "likely" }, ...shown),
  ];
}

/** Each picture below its codes. */
export async function codes(answer, model, signal) {
  const content = answer.pictures.map(imagePart);
  const response = await call("v1/tokenize", { content, add_special_tokens: false }, signal);
  const found = (await response.json()).codes;
  return [
    note(
      "What the model reads where it is shown this picture again: a code for each square. It may have been drawn from " +
        "others. Point at a square, or move with the arrow keys, to see where else its code occurs.",
    ),
    element("div", { className: "coded" }, ...(await Promise.all(found.map((own, number) => overlay(answer.pictures[number], own, number + 1))))),
  ];
}

async function overlay(url, own, number) {
  const image = element("img", { src: url });
  await image.decode();
  const side = Math.round(Math.sqrt(own.length));
  const cell = Math.max(1, Math.floor(LARGEST / side));
  const canvas = element("canvas", {
    width: side * cell, height: side * cell, tabIndex: 0, role: "img",
    "aria-label": `Picture ${number} in ${side} rows of ${side} codes. Arrow keys move between them.`,
  });
  const said = element("p", { role: "status" });
  let at = 0;
  const draw = () => {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = image.naturalWidth >= canvas.width;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.font = `${Math.min(15, cell / 3)}px ui-monospace, monospace`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    own.forEach((code, place) => {
      const [x, y] = [(place % side) * cell, Math.floor(place / side) * cell];
      if (code === own[at]) {
        context.fillStyle = "#1a6b5066";
        context.fillRect(x, y, cell, cell);
      }
      context.lineWidth = place === at ? 4 : 1;
      context.strokeStyle = place === at ? "#0b3d2c" : "#00000055";
      context.strokeRect(x + 0.5, y + 0.5, cell - 1, cell - 1);
      if (cell < 24) return; // numbers could not be read
      context.lineWidth = 3;
      context.strokeStyle = "#fff";
      context.strokeText(code, x + cell / 2, y + cell / 2);
      context.fillStyle = "#111";
      context.fillText(code, x + cell / 2, y + cell / 2);
    });
    const times = own.filter((code) => code === own[at]).length;
    said.textContent = `Row ${Math.floor(at / side) + 1}, column ${(at % side) + 1}: code ${own[at]}, ${times === 1 ? "here alone" : `in ${times} squares`}.`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [column, row] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((share) =>
      Math.min(side - 1, Math.max(0, Math.floor(share * side))),
    );
    at = row * side + column;
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side }[event.key];
    if (!step) return;
    event.preventDefault();
    if (own[at + step] !== undefined) at += step;
    draw();
  });
  draw();
  return element("div", {}, canvas, said);
}

/** The same request with and without guidance, side by side, from the same seed. */
export function guidance(answer, request, model, signal) {
  const { text_guidance, guidance_scale } = request.body;
  const asked = text_guidance ?? guidance_scale ?? model.defaults.guidance;
  const strength = asked === 1 ? 3 : asked;
  const sides = [1, strength].map((scale) => {
    const place = element("div", { className: "answer" });
    const own = withGuidance({ ...request, body: { ...request.body, seed: answer.seed } }, scale);
    const running = new Answer(place).follow(answerTo(own, signal)).catch((error) => {
      if (error.name !== "AbortError") place.append(element("p", { className: "problem", textContent: error.message }));
    });
    const title = scale === 1 ? "Without guidance" : `With guidance of ${scale}`;
    return { running, shown: element("section", { "aria-label": title }, element("h3", { textContent: title }), place) };
  });
  return {
    running: Promise.all(sides.map((side) => side.running)),
    shown: [note(`Both from the seed ${answer.seed}.`), element("div", { className: "versions" }, ...sides.map((side) => side.shown))],
  };
}
