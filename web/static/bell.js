// What scripts of pages share: asking the server for data, and being told when there is something to ask for.
"use strict";

// Calls `ask` soon after one of the events of the stream, never twice at once and not more often than `pauseMs`;
// no longer once what the page shows is deleted.
function onBell(names, ask, pauseMs) {
  let busy = false, again = false, over = false;
  document.addEventListener("deleted", () => { over = true; });
  async function run() {
    if (over) return;
    if (busy) { again = true; return; }
    busy = true;
    try { await ask(); } catch (error) { console.warn(error); }
    setTimeout(() => { busy = false; if (again) { again = false; run(); } }, pauseMs);
  }
  for (const name of [...names, "resync"]) document.addEventListener(name, run);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) run(); });
  return run;
}

async function getJson(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.json();
}

function withQuery(url, values) {
  const found = new URL(url, location.href);
  for (const [key, value] of Object.entries(values)) found.searchParams.set(key, value);
  return found;
}

function remembered(key, otherwise) {
  try { return { ...otherwise, ...JSON.parse(localStorage.getItem(key) ?? "{}") }; } catch { return { ...otherwise }; }
}

function remember(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* it holds for this page then */ }
}
