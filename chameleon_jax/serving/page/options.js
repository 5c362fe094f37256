// What stands behind "Options".

import { byId } from "./elements.js";
import { formOf } from "./requests.js";

const fields = () => byId("options").querySelectorAll("select, input");
const field = (name) => byId("options").querySelector(`[name=${name}]`);

/** Fits the options to the model: what it cannot do is not offered, and fields show what holds if they are empty. */
export function prepare(model) {
  const draws = model.output_modalities.includes("image");
  if (!draws) {
    for (const value of ["text image", "image"]) field("modalities").querySelector(`[value="${value}"]`).remove();
    field("form").querySelector("[value=draw]").remove();
    for (const each of byId("options").querySelectorAll("[data-draws]")) each.remove();
  }
  field("form").value = formOf(model);
  for (const [name, value] of Object.entries(model.defaults ?? {})) {
    const found = field(name);
    if (found && value !== null) found.placeholder = value;
  }
  byId("options").addEventListener("change", showState);
  showState();
}

/** Shows the fields that the form of the request has, and how many are filled in. */
function showState() {
  for (const each of byId("options").querySelectorAll("[data-forms]")) {
    each.hidden = !each.dataset.forms.split(" ").includes(field("form").value);
  }
  const filled = [...byId("options").querySelectorAll("input")].filter((each) => each.value && !each.closest("[hidden]"));
  const named = filled.map((each) => `${each.closest("label").firstChild.textContent.trim().toLowerCase()} ${each.value}`);
  byId("options").firstElementChild.textContent = named.length ? `Options: ${named.join(", ")}` : "Options";
}

/** The options as they are set; an empty field is undefined. Null if one cannot be used, which is shown. */
export function read() {
  const found = {};
  for (const each of fields()) {
    if (!each.closest("[hidden]") && !each.checkValidity()) {
      byId("options").open = true;
      each.reportValidity();
      return null;
    }
    const value = each.type === "number" ? each.valueAsNumber : each.value;
    found[each.name] = value === "" || Number.isNaN(value) ? undefined : value;
  }
  found.modalities = found.modalities.split(" ");
  return found;
}

export function set(name, value) {
  field(name).value = value;
  showState();
}
