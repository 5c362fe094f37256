// Something to begin with, by what the model can do, or as its server says.

import { element } from "./elements.js";
import { imagePart } from "./requests.js";

const text = (words) => ({ type: "text", text: words });

export function examplesFor(model) {
  const draws = model.output_modalities.includes("image");
  const form = model.conversations ? "chat" : "continue";
  if (model.examples.length) return model.examples.map((words) => ({ label: words, parts: [text(words)], form }));
  const found = [];
  const wanted = "a red star above a green square";
  if (draws && model.conversations) found.push({ label: `Draw ${wanted}.`, parts: [text(`Draw ${wanted}.`)], form });
  else if (draws) found.push({ label: "Draw a red star", parts: [text("A red star.")], form: "draw" });
  if (model.input_modalities.includes("image")) {
    const words = model.conversations ? "What do you see?" : "";
    const label = words ? `${words} (a drawing)` : "Continue a drawing";
    found.push({ label, parts: [imagePart(shapes()), ...(words ? [text(words)] : [])], form });
  }
  const story = draws ? "Tell me a story with pictures." : "Once upon a time";
  if (model.conversations) found.push({ label: story, parts: [text(story)], form });
  else found.push({ label: "Once upon a time …", parts: [text("Once upon a time")], form });
  return found;
}

/** A picture of a blue square above a yellow circle. */
function shapes() {
  const canvas = element("canvas", { width: 192, height: 192 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#faf8f2";
  context.fillRect(0, 0, 192, 192);
  context.fillStyle = "#3069d6";
  context.fillRect(18, 18, 60, 60);
  context.fillStyle = "#f6d53c";
  context.arc(48, 144, 34, 0, 7);
  context.fill();
  return canvas.toDataURL("image/png");
}
