// The message being written: text in which [picture 1] stands for a picture.

import { byId, button, element } from "./elements.js";
import { imagePart } from "./requests.js";

const MARK = /\[picture (\d+)\]/g;
const AS_IT_IS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MOST_BYTES = 4 << 20;
const MOST_SIDE = 2048;

const pictures = new Map(); // number -> data URL
let reads = true;

/** Sets whether the model reads pictures, and whom to tell of files that are none. */
export function prepare(model, onProblem) {
  reads = model.input_modalities.includes("image");
  const prompt = byId("prompt");
  prompt.addEventListener("input", show);
  if (!reads) {
    document.querySelector(".of-pictures").remove();
    prompt.placeholder = "Write";
    return;
  }
  const take = async (files) => {
    for (const file of files) {
      try {
        add(await urlOf(file));
      } catch {
        onProblem(`${file.name}: this browser cannot read it as a picture.`);
      }
    }
  };
  byId("pick").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    await take([...event.target.files]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    take(files);
  });
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}

/** A file as a data URL: as it is, unless the server might not read its format or it is large. */
async function urlOf(file) {
  const bitmap = await createImageBitmap(file); // throws if it is no picture
  if (AS_IT_IS.includes(file.type) && file.size <= MOST_BYTES) return readAsUrl(file);
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas", { width: Math.max(1, bitmap.width * scale), height: Math.max(1, bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function readAsUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Puts a picture where the cursor is. */
export function add(url) {
  const prompt = byId("prompt");
  const number = Math.max(0, ...pictures.keys()) + 1;
  pictures.set(number, url);
  prompt.setRangeText(`[picture ${number}] `, prompt.selectionStart, prompt.selectionEnd, "end");
  prompt.focus();
  show();
}

/** Fills in a whole message. */
export function fill(parts) {
  clear();
  for (const part of parts) {
    if (part.type === "image_url") add(part.image_url.url);
    else byId("prompt").value += part.text;
  }
  show();
}

export function clear() {
  pictures.clear();
  byId("prompt").value = "";
  show();
}

/**
 * The message as parts in order.
 * @param exact whether spaces beside pictures belong to the message; otherwise they only make it readable.
 */
export function read(exact) {
  const parts = [];
  const say = (text) => text && parts.push({ type: "text", text });
  const text = byId("prompt").value;
  let end = 0;
  for (const found of text.matchAll(MARK)) {
    const url = pictures.get(Number(found[1]));
    if (!url) continue; // words of the user
    const before = text.slice(end, found.index);
    say(exact ? before : before.trim());
    parts.push(imagePart(url));
    end = found.index + found[0].length + (text[found.index + found[0].length] === " " ? 1 : 0);
  }
  say(exact ? text.slice(end) : text.slice(end).trim());
  return parts;
}

function show() {
  const prompt = byId("prompt");
  const named = new Set([...prompt.value.matchAll(MARK)].map((found) => Number(found[1])));
  const shown = [...pictures].filter(([number]) => named.has(number)); // deleted ones come back with undo
  byId("attached").replaceChildren(
    ...shown.map(([number, url]) =>
      element(
        "figure", {}, element("img", { src: url, alt: `Picture ${number} of your message` }),
        button("×", () => {
          prompt.value = prompt.value.replaceAll(new RegExp(`\\[picture ${number}\\] ?`, "g"), "");
          prompt.focus();
          show();
        }, { "aria-label": `Remove picture ${number}` }),
        element("figcaption", { textContent: `picture ${number}` }),
      ),
    ),
  );
  byId("attached").hidden = !shown.length;
}
