// The three forms of a request, and one form of what comes back.

import { Problem, call, eventsOf } from "./api.js";

const PREVIEWS = 3;
export const dataUrl = (base64) => `data:image/png;base64,${base64}`;
export const imagePart = (url) => ({ type: "image_url", image_url: { url } });

/** The form that suits a model. */
export const formOf = (model) => (model.conversations ? "chat" : "continue");

/** Parts as the content of a message: a text alone is a string. */
const contentOf = (parts) => (parts.every((part) => part.type === "text") ? parts.map((part) => part.text).join("") : parts);

/**
 * What to send.
 * @param turns the conversation: {role, parts} each, the last one the user's. Forms other than "chat" use that alone.
 * @param options as options.js reads them; what is undefined is left to the server.
 */
export function requestFor(turns, options, model) {
  const last = turns.at(-1).parts;
  const { form, modalities, seed, temperature, top_p, max_tokens, image_temperature, guidance, negative_prompt } = options;
  const common = { model: model.id, seed, stream: true };
  if (form === "draw") {
    const prompt = last.filter((part) => part.type === "text").map((part) => part.text).join(" ");
    return {
      path: "v1/images/generations",
      body: { ...common, prompt, temperature: image_temperature, guidance_scale: guidance, negative_prompt, partial_images: PREVIEWS },
    };
  }
  const draws = modalities.includes("image");
  const sampling = {
    modalities, temperature, top_p, max_tokens, stream_options: { include_usage: true },
    ...(draws && { image: image_temperature === undefined ? undefined : { temperature: image_temperature } }),
    ...(draws && { text_guidance: guidance, partial_images: PREVIEWS }),
  };
  if (form === "continue") return { path: "v1/completions", body: { ...common, prompt: contentOf(last), ...sampling } };
  const messages = turns.map(({ role, parts }) => ({ role, content: contentOf(parts) }));
  return { path: "v1/chat/completions", body: { ...common, messages, ...sampling, logprobs: true } };
}

/** The same request without guidance, or with that much. */
export function withGuidance({ path, body }, scale) {
  const name = path.startsWith("v1/images") ? "guidance_scale" : "text_guidance";
  return { path, body: { ...body, [name]: scale, ...(scale === 1 && name === "text_guidance" && { image_guidance: 1 }) } };
}

/**
 * Sends a request, and yields what its answer consists of as it comes:
 * {seed}, {text, tokens}, {progress: {share, url}}, {picture: url}, {reason}, {total}.
 */
export async function* answerTo({ path, body }, signal) {
  const response = await call(path, body, signal);
  let ended = false;
  let seed;
  for await (const event of eventsOf(response)) {
    if (seed === undefined) yield { seed: (seed = event.seed) };
    if (event.type) {
      const url = dataUrl(event.b64_json);
      if (event.type.endsWith("partial_image")) yield { progress: { share: (event.partial_image_index + 1) / (PREVIEWS + 1), url } };
      else {
        ended = true;
        yield { picture: url };
        yield { reason: "stop" };
      }
      continue;
    }
    if (event.usage) yield { total: event.usage.total_tokens };
    for (const choice of event.choices) {
      const { content, images, partial_image } = choice.delta ?? { ...choice, content: choice.text };
      if (content || choice.logprobs?.content?.length) yield { text: content ?? "", tokens: choice.logprobs?.content ?? [] };
      if (partial_image) yield { progress: { share: partial_image.written / partial_image.of, url: partial_image.image_url?.url } };
      for (const image of images ?? []) yield { picture: image.image_url.url };
      if (choice.finish_reason) {
        ended = true;
        yield { reason: choice.finish_reason };
      }
    }
  }
  if (!ended) throw new Problem("The connection ended before the answer was whole.");
}
