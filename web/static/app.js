// What pages share: the theme button and short messages. A server answers with HX-Trigger: {"toast": "text"} to show one.
"use strict";

function toast(text) {
  const box = document.createElement("p");
  box.className = "toast";
  box.textContent = text;
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), 6000);
}

document.addEventListener("toast", (event) => toast(event.detail.value ?? event.detail));

(function () {
  const button = document.getElementById("theme");
  if (!button) return;
  const order = ["system", "light", "dark"];
  const now = () => document.documentElement.dataset.theme ?? "system";
  const show = () => { button.textContent = `Theme: ${now()}`; };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(now()) + 1) % order.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { localStorage.setItem("theme", next); } catch { /* it holds for this page then */ }
    show();
  });
})();
