// What pages share: the theme button and short messages. A server answers with HX-Trigger: {"toast": "text"} to show one.
"use strict";

function toast(text, bad = false) {
  const box = document.createElement("p");
  box.className = bad ? "toast bad" : "toast";
  box.textContent = text;
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), bad ? 15000 : 5000);
}

document.addEventListener("toast", (event) => toast(event.detail.value ?? event.detail));

(function () {
  const button = document.getElementById("theme");
  if (!button) return;
  const order = ["system", "light", "dark"];
  const signs = { system: "\u25d0", light: "\u2600", dark: "\u263e" }; // half a circle, the sun, the moon
  const now = () => document.documentElement.dataset.theme ?? "system";
  const show = () => {
    button.textContent = signs[now()];
    button.title = `Theme: ${now()}`;
    button.setAttribute("aria-label", button.title);
  };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(now()) + 1) % order.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { localStorage.setItem("theme", next); } catch { /* it holds for this page then */ }
    show();
    document.dispatchEvent(new CustomEvent("theme"));
  });
})();

// Forms with data-live are sent without leaving the page; the parts of it that changed are told by the stream of events.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!(form instanceof HTMLFormElement) || form.dataset.live === undefined || event.defaultPrevented) return;
  event.preventDefault();
  const button = event.submitter; // it keeps the focus, so it is not disabled while the server works
  if (button?.getAttribute("aria-disabled") === "true") return;
  button?.setAttribute("aria-disabled", "true");
  try {
    const body = new URLSearchParams(new FormData(form, button));
    const response = await fetch(form.action, {
      method: "POST", body, redirect: "manual", credentials: "same-origin", headers: { Accept: "application/json" },
    });
    if (response.type === "opaqueredirect" || response.ok) {
      toast(form.dataset.live || "Done.");
    } else {
      const problem = await response.json().catch(() => ({}));
      const listed = (problem.errors ?? []).map((each) => `${each.line ? `line ${each.line}: ` : ""}${each.pointer} ${each.detail}`);
      toast(listed.length ? listed.join("\n") : problem.detail ?? `The server answered ${response.status}.`, true);
    }
  } catch {
    toast("The server cannot be reached.", true);
  } finally {
    button?.removeAttribute("aria-disabled");
    document.body.dispatchEvent(new CustomEvent("resync", { bubbles: true }));
  }
});

// A page of a job that is deleted elsewhere says so; what would ask for more of it goes with the rest of the page.
(function () {
  const said = document.getElementById("deleted");
  if (!said) return;
  document.addEventListener(said.dataset.event, () => {
    document.dispatchEvent(new CustomEvent("deleted"));
    document.getElementById("content").replaceChildren(said.content);
  }, { once: true });
})();

// A table or text wider than its place scrolls by itself; then the keyboard must reach it, and only then.
(function () {
  const judge = (box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };
  const known = new WeakSet();
  const sizes = new ResizeObserver((seen) => seen.forEach((each) => judge(each.target)));
  const find = () => document.querySelectorAll("table, ol.code").forEach((each) => {
    if (known.has(each)) return judge(each);
    known.add(each);
    sizes.observe(each); // which judges it
  });
  new MutationObserver(find).observe(document.body, { childList: true, subtree: true });
  find();
})();
