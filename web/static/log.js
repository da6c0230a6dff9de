// The log: asks for what came since, keeps to the end while one is there, and leaves the place one scrolled to alone.
"use strict";
(function () {
  const box = document.getElementById("log");
  const follow = document.getElementById("follow");
  if (!box || !follow) return;
  const MOST = 400000; // letters kept on the page
  let offset = Number(box.dataset.offset), of = box.dataset.of, empty = offset === 0;
  document.getElementById("follow-label").hidden = false;

  const atEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 24;
  const toEnd = () => { box.scrollTop = box.scrollHeight; };
  toEnd();
  box.addEventListener("scroll", () => { follow.checked = atEnd(); });
  follow.addEventListener("change", () => { if (follow.checked) toEnd(); });

  async function more() {
    const slice = await getJson(withQuery(box.dataset.url, { offset, of }));
    offset = slice.offset;
    of = slice.of;
    if (!slice.text && !slice.reset) return;
    if (slice.reset || empty) box.textContent = "";
    empty = false;
    box.append(slice.text);
    if (follow.checked) {
      if (box.textContent.length > MOST) box.textContent = box.textContent.slice(-MOST / 2).replace(/^[^\n]*\n/, "");
      toEnd();
    }
  }

  const ask = onBell([`log-${box.dataset.job}`, `job-${box.dataset.job}`], more, 1000);
  // Should the stream of events be down, the log is asked for all the same.
  if (box.dataset.active === "yes") setInterval(() => { if (!document.hidden) ask(); }, 5000);
})();
