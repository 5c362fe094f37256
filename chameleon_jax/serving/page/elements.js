// Elements of the page. Texts only ever become text nodes.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; a property with a hyphen is an attribute. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const button = (label, onclick, properties = {}) => element("button", { type: "button", textContent: label, onclick, ...properties });

/** A picture, enlarged by a whole number with sharp pixels if it is small. */
export function picture(url, alt) {
  const image = element("img", { alt, src: url });
  image.addEventListener("load", () => {
    const times = Math.floor(240 / image.naturalWidth);
    image.width = Math.min(image.naturalWidth * Math.max(1, times), 512);
    image.classList.toggle("enlarged", times > 1);
  });
  return image;
}

/** Says something to those who hear the page. */
export function say(text) {
  byId("status").textContent = text;
}
