// Requests to the server that this page came from.

const KEY = "chameleon key";

/** What the server, or the way to it, says is wrong. */
export class Problem extends Error {}

/** An address of this server, which may lie below a path of a reverse proxy. */
export const addressOf = (path) => new URL(path, document.baseURI).href;

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);

let askForKey = async () => {};
/** Sets what is called, with what was wrong with the last one, when the server asks for a key; it calls `setKey`. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The response to a GET, or to a POST of `body`. Throws a Problem unless it is fine. */
export async function call(path, body, signal) {
  for (;;) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
    let response;
    try {
      response = await fetch(addressOf(path), {
        method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, credentials: "omit",
        cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server cannot be reached.");
    }
    if (response.status === 401) {
      await askForKey(hasKey() ? "The server does not know this key." : "");
      continue;
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    const wait = response.headers.get("Retry-After");
    const message = said.error?.message ?? `The server answered with status ${response.status}.`;
    throw new Problem(wait ? `${message} (Try again in ${wait} seconds.)` : message);
  }
}

/** The server-sent events of a response, parsed. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Problem("The connection to the server was lost.");
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message);
      yield event;
    }
  }
}
