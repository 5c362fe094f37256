// An answer, while it is written and afterwards.

import { element, picture, say } from "./elements.js";
import { imagePart } from "./requests.js";

/**
 * Shows an answer in `place` as its events come.
 * `parts` are its texts and whole pictures in order, `tokens` those of its text, as far as the server tells them.
 */
export class Answer {
  constructor(place) {
    this.place = place;
    this.parts = [];
    this.tokens = [];
    this.seed = this.reason = this.total = undefined;
    this._text = this._drawn = undefined;
  }

  get pictures() {
    return this.parts.filter((part) => part.type === "image_url").map((part) => part.image_url.url);
  }

  get hasText() {
    return this.parts.some((part) => part.type === "text");
  }

  /** Shows all events. Throws what they throw. */
  async follow(events) {
    this.place.setAttribute("aria-busy", "true");
    try {
      for await (const event of events) this._take(event);
    } finally {
      this._drawn?.figure.remove(); // a picture that was never finished
      this.place.removeAttribute("aria-busy");
    }
  }

  _take(event) {
    if (event.tokens) this.tokens.push(...event.tokens);
    if (event.text) this._write(event.text);
    if (event.progress) this._draw(event.progress);
    if (event.picture) this._finish(event.picture);
    for (const name of ["seed", "reason", "total"]) this[name] = event[name] ?? this[name];
  }

  _write(text) {
    if (!this._text) {
      this._text = element("p", { className: "text" });
      this.place.append(this._text);
      this.parts.push({ type: "text", text: "" });
    }
    this._text.append(text);
    this.parts.at(-1).text += text;
  }

  _draw({ share, url }) {
    if (!this._drawn) {
      const bar = element("progress", { max: 1, "aria-label": "How much of the picture is written" });
      const figure = element("figure", { className: "drawn" }, element("div", { className: "blank" }), bar);
      this._drawn = { figure, bar };
      this._text = undefined;
      this.place.append(figure);
      say("Drawing a picture");
    }
    this._drawn.bar.value = share;
    if (!url) return;
    const preview = picture(url, "Preview of a picture");
    preview.classList.add(share < 0.4 ? "rough" : share < 0.7 ? "coarse" : "fine");
    this._drawn.figure.firstChild.replaceWith(preview);
  }

  _finish(url) {
    const figure = this._drawn?.figure ?? element("figure", { className: "drawn" });
    if (!this._drawn) this.place.append(figure);
    this._drawn = this._text = undefined;
    this.parts.push(imagePart(url));
    figure.replaceChildren(picture(url, `Picture ${this.pictures.length} of the answer`));
  }
}
