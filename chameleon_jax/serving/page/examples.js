// Something to begin with, by what the model can do, or as its server says.

import { element } from "./elements.js";
import { formOf, imagePart } from "./requests.js";

const text = (words) => ({ type: "text", text: words });

export function examplesFor(model) {
  const form = formOf(model);
  if (model.examples.length) return model.examples.map((words) => ({ label: words, parts: [text(words)], form }));
  const draws = model.output_modalities.includes("image");
  const found = [];
  const wanted = "red circle above a blue star";
  if (draws && model.conversations) found.push({ label: `Draw a ${wanted}.`, parts: [text(`Draw a ${wanted}.`)], form });
  else if (draws) found.push({ label: `Draw: A ${wanted}.`, parts: [text(`A ${wanted}.`)], form: "draw" });
  if (model.input_modalities.includes("image")) {
    const words = "What do you see?";
    if (model.conversations) found.push({ label: `${words} (a drawing)`, parts: [imagePart(shapes()), text(words)], form });
    else found.push({ label: "Continue: a drawing", parts: [imagePart(shapes())], form });
  }
  if (draws) found.push({ label: "Continue: A blue circle. …", parts: [text("A blue circle. ")], form: "continue" });
  else found.push({ label: "Continue: Once upon a time …", parts: [text("Once upon a time")], form: "continue" });
  return found;
}

/** A picture of a red circle at the top left and a blue square at the bottom right. */
function shapes() {
  const canvas = element("canvas", { width: 192, height: 192 });
  const context = canvas.getContext("2d");
  context.fillStyle = "#faf8f2";
  context.fillRect(0, 0, 192, 192);
  context.fillStyle = "#d63031";
  context.arc(48, 48, 34, 0, 7);
  context.fill();
  context.fillStyle = "#3069d6";
  context.fillRect(114, 114, 60, 60);
  return canvas.toDataURL("image/png");
}
