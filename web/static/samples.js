// The viewer of previews: arrow keys follow its links, the slider walks through steps, the wipe shows one over the other.
"use strict";
(function () {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const link = viewer.querySelector(`a[data-key="${CSS.escape(event.key)}"]`);
    if (!link) return;
    event.preventDefault();
    location.assign(link.href);
  });

  const shown = document.getElementById("shown"), other = document.getElementById("other");
  const slider = document.getElementById("steps"), items = [...document.querySelectorAll("#step-list li")];
  document.getElementById("step-slider").hidden = items.length < 2;
  slider.addEventListener("input", () => {
    const item = items[slider.value];
    shown.src = item.dataset.src;
    document.getElementById("step-shown").textContent = item.dataset.step;
    slider.setAttribute("aria-valuetext", `step ${item.dataset.step}`);
  });
  // Once it rests, the address and all that is said about the picture follow.
  slider.addEventListener("change", () => location.replace(items[slider.value].dataset.href));
  for (const item of items) new Image().src = item.dataset.src;

  if (!other) return;
  const wipe = document.getElementById("wipe"), stage = document.getElementById("stage");
  wipe.hidden = false;
  document.getElementById("wipe-label").hidden = false;
  stage.classList.add("over");
  const show = () => { other.style.clipPath = `inset(0 ${100 - wipe.value}% 0 0)`; };
  wipe.addEventListener("input", show);
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons !== 1 && event.pointerType === "mouse") return;
    const box = stage.getBoundingClientRect();
    wipe.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  });
  show();
})();
