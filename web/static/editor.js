// The YAML text with numbered lines and problems while one types; a warning before changes are lost.
"use strict";
(function () {
  const form = document.getElementById("editor");
  if (!form) return;
  let changed = false;
  form.addEventListener("input", () => { changed = true; });
  form.addEventListener("submit", () => { changed = false; });
  addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });

  const text = document.getElementById("text"), gutter = document.getElementById("gutter");
  if (!text) return;
  let bad = new Set();
  const number = () => {
    const count = text.value.split("\n").length;
    gutter.replaceChildren(...Array.from({ length: count }, (_, index) => {
      const line = document.createElement("span");
      line.textContent = index + 1;
      if (bad.has(index + 1)) line.className = "bad";
      return line;
    }));
    gutter.scrollTop = text.scrollTop;
  };
  text.addEventListener("scroll", () => { gutter.scrollTop = text.scrollTop; });

  function goTo(line) {
    const before = text.value.split("\n").slice(0, line - 1).join("\n");
    const start = before.length + (line > 1 ? 1 : 0), end = text.value.indexOf("\n", start);
    text.focus();
    text.setSelectionRange(start, end < 0 ? text.value.length : end);
    text.scrollTop = Math.max(0, (line - 5) * parseFloat(getComputedStyle(text).lineHeight));
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-line]");
    if (!link) return;
    event.preventDefault();
    goTo(Number(link.dataset.line));
  });

  function show(answer) {
    const box = document.getElementById("problems");
    const said = document.createElement("p");
    said.className = answer.ok ? "good" : "error";
    said.textContent = answer.ok ? "This config can be queued." : `${answer.errors.length} to solve before this can be queued (it can be saved as it is):`;
    const list = document.createElement("ul");
    list.className = "problems";
    for (const error of answer.errors) {
      const item = document.createElement("li");
      if (error.line) {
        const link = document.createElement("a");
        link.href = `#L${error.line}`;
        link.dataset.line = error.line;
        link.textContent = `line ${error.line}`;
        item.append(link, " ");
      }
      if (error.pointer) { const code = document.createElement("code"); code.textContent = error.pointer; item.append(code, " "); }
      item.append(error.detail);
      if (error.remedy) { const small = document.createElement("small"); small.textContent = ` ${error.remedy}`; item.append(small); }
      list.append(item);
    }
    box.replaceChildren(said, list);
    bad = new Set(answer.errors.map((error) => error.line));
    number();
  }

  let timer = null, asked = 0;
  async function check() {
    const turn = ++asked;
    const response = await fetch(text.dataset.check, {
      method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify({ config_yaml: text.value }),
    }).catch(() => null);
    if (turn === asked && response?.ok) show(await response.json());
  }
  text.addEventListener("input", () => { number(); clearTimeout(timer); timer = setTimeout(check, 500); });
  text.addEventListener("keydown", (event) => {
    // Two blanks for Tab; after Escape, Tab leaves the text.
    if (event.key === "Escape") { text.dataset.leave = "yes"; return; }
    if (event.key === "Tab" && !event.shiftKey && !text.dataset.leave) {
      event.preventDefault();
      text.setRangeText("  ", text.selectionStart, text.selectionEnd, "end");
      text.dispatchEvent(new Event("input", { bubbles: true }));
      return;
    }
    delete text.dataset.leave;
  });
  bad = new Set([...document.querySelectorAll("#problems a[data-line]")].map((link) => Number(link.dataset.line)));
  number();
})();
