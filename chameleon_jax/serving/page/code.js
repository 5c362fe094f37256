// The request as others would send it.

import { addressOf, hasKey } from "./api.js";
import { byId } from "./elements.js";

/** For a shell. The body is read from a here-document, as pictures are longer than a command may be. */
export function asCurl({ path, body }) {
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $CHAMELEON_KEY"` : "";
  return `curl -sN ${addressOf(path)} \\\n  -H 'Content-Type: application/json'${key} -d @- <<'END'\n${JSON.stringify(body, null, 1)}\nEND\n`;
}

const OPENAI = {
  "v1/chat/completions": ["chat.completions.create", ["model", "messages", "seed", "stream", "stream_options", "temperature", "top_p", "max_tokens", "logprobs"]],
  "v1/completions": ["completions.create", ["model", "prompt", "seed", "stream", "stream_options", "temperature", "top_p", "max_tokens"]],
  "v1/images/generations": ["images.generate", ["model", "prompt", "stream", "partial_images"]],
};

/** For the openai package, which passes on in extra_body what OpenAI's API does not have. */
export function asPython({ path, body }) {
  const [method, names] = OPENAI[path];
  const own = Object.entries(body).filter(([, value]) => value !== undefined);
  const known = own.filter(([name, value]) => names.includes(name) && !(name === "prompt" && typeof value !== "string"));
  const extra = own.filter((entry) => !known.includes(entry));
  const lines = known.map(([name, value]) => `    ${name}=${literal(value)},\n`);
  if (path === "v1/completions" && !known.some(([name]) => name === "prompt")) lines.push(`    prompt="",\n`);
  if (extra.length) lines.push(`    extra_body=${literal(Object.fromEntries(extra))},\n`);
  const key = hasKey() ? `os.environ["CHAMELEON_KEY"]` : `"none"`;
  return (
    `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url="${addressOf("v1")}", api_key=${key})\n` +
    `for event in client.${method}(\n${lines.join("")}):\n    print(event.model_dump_json())\n`
  );
}

/** A value of JSON as Python writes it. A string of JSON is one of Python too. */
function literal(value) {
  if (value === true || value === false) return value ? "True" : "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).filter(([, each]) => each !== undefined);
  return `{${entries.map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
}

/** Shows code, to be copied whole; of pictures only the beginning is shown. */
export function show(title, code) {
  byId("code-title").textContent = title;
  byId("code-note").textContent = hasKey() ? "It takes your key from the variable CHAMELEON_KEY." : "";
  byId("code-text").textContent = code.replace(/(base64,.{24})[^"]+/g, "$1…");
  byId("copy-code").onclick = async () => {
    await copy(code);
    byId("copy-code").textContent = "Copied";
  };
  byId("copy-code").textContent = "Copy";
  byId("code").showModal();
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea"); // pages without encryption have no clipboard
  field.value = text;
  byId("code").append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
