"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const sections = [...document.querySelectorAll("main > section")];
  const comparison = find("judge").dataset.comparison;
  const place = `chameleon-comparison-${comparison}`;
  const person = find("person");
  let kept = { person: "", judgements: {}, at: 0 };
  let keeps = true;

  const isWhole = (number) => Object.keys(kept.judgements[number] ?? {}).length === 3;

  function tell(text) {
    const judged = sections.filter((_, at) => isWhole(at + 1)).length;
    find("progress").textContent = text ?? `${judged} of ${sections.length} judged`;
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(kept));
    } catch {
      keeps = false;
    }
    tell(keeps ? undefined : "not kept in this browser: save before you leave");
  }

  function show(at) {
    kept.at = Math.min(Math.max(at, 0), sections.length - 1);
    sections.forEach((section, other) => (section.hidden = other !== kept.at));
    find("previous").disabled = kept.at === 0;
    find("next").disabled = kept.at === sections.length - 1;
    keep();
  }

  function go(steps) {
    show(kept.at + steps);
    const heading = sections[kept.at].querySelector("h2");
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    heading.scrollIntoView();
  }

  function fill() {
    person.value = kept.person;
    for (const radio of document.querySelectorAll("input[type=radio]")) {
      const [number, name] = radio.name.split(" ");
      radio.checked = kept.judgements[number]?.[name] === radio.value;
    }
    show(kept.at);
  }

  function save() {
    if (!person.value.trim()) {
      person.focus();
      tell("write your name first");
      return;
    }
    const said = { comparison, person: person.value.trim(), judgements: kept.judgements };
    const file = new Blob([JSON.stringify(said, null, 2) + "\n"], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `judgements-${said.person.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  document.addEventListener("change", ({ target }) => {
    if (target.type !== "radio") return;
    const [number, name] = target.name.split(" ");
    (kept.judgements[number] ??= {})[name] = target.value;
    keep();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === person) return;
    const better = { a: "A", b: "B", t: "tie" }[event.key];
    if (better) sections[kept.at].querySelector(`input[name$=" better"][value="${better}"]`).click();
    else if (event.key === "n") go(1);
    else if (event.key === "p") go(-1);
  });
  person.addEventListener("input", () => {
    kept.person = person.value;
    keep();
  });
  find("previous").addEventListener("click", () => go(-1));
  find("next").addEventListener("click", () => go(1));
  find("save").addEventListener("click", save);
  find("anew").addEventListener("click", () => {
    if (!confirm("Forget your name and all that you said on this page? Files that you saved stay.")) return;
    kept = { person: "", judgements: {}, at: 0 };
    fill();
  });

  try {
    const before = JSON.parse(localStorage.getItem(place));
    if (before?.judgements) kept = before;
  } catch {
    keeps = false;
  }
  fill();
})();
