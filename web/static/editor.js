// The editor of a job: its buttons work in place, what is typed is kept by the tab; the YAML text has numbered lines and problems.
"use strict";
(function () {
  const form = () => document.getElementById("editor"); // another one after each press of a button; none on an error page
  const view = () => form().elements.view.value;
  const fields = () => new URLSearchParams(new FormData(form()));
  const root = document.body.dataset.root;

  // -- what is typed is kept by the tab, and shown again where the browser comes back -----------------

  const tab = (() => { try { return sessionStorage; } catch { return null; } })(); // null: it is forbidden here
  const KEPT = "editor "; // and the name of a draft, which its places in the history know
  const MOST_KEPT = 10;
  const draft = history.state?.editor ?? `${Date.now()}`;
  const kept = tab?.getItem(KEPT + draft), wanted = history.state?.view;
  if (!form() && !kept) return;
  const drafts = () => Object.keys(tab ?? {}).filter((key) => key.startsWith(KEPT)).sort(); // the oldest first
  let changed = location.pathname.endsWith("/jobs/edit"); // what was posted can only be had from here

  function keep() {
    const others = drafts().filter((key) => key !== KEPT + draft);
    for (const key of others.slice(0, Math.max(0, others.length - MOST_KEPT + 1))) tab?.removeItem(key);
    try { tab?.setItem(KEPT + draft, fields()); } catch { /* no room: the browser has asked before it leaves */ }
  }

  function forget() {
    changed = false;
    tab?.removeItem(KEPT + draft);
  }

  // An address that shows the same job and view when it is read again.
  function address() {
    const job = form().elements.job.value, url = new URL(location.href);
    const path = job ? `/jobs/${job}/edit` : "/jobs/new";
    if (!url.pathname.endsWith(path)) {
      url.pathname = root + path;
      url.search = job ? "" : "?empty=true";
    }
    if ((url.searchParams.get("view") ?? "form") !== view()) url.searchParams.set("view", view());
    return url;
  }

  const place = () => form() && history.replaceState({ editor: draft, view: view() }, "", address());

  // Buttons answer in the same page, so that nothing typed hangs on a form that was posted.
  let busy = Promise.resolve();
  const press = (action, body = fields()) => (busy = answer(action, body)); // whether the page is another one now

  async function answer(action, body) {
    body.append("action", action);
    const asking = form() ?? document.getElementById("content");
    asking.inert = true; // what is typed until the answer comes would be lost
    asking.ariaBusy = "true";
    const response = await fetch(`${root}/jobs/edit`, {
      method: "POST", body, credentials: "same-origin", headers: { Accept: "text/html" },
    }).catch(() => null);
    asking.inert = false;
    asking.ariaBusy = null;
    if (response?.redirected && response.ok && response.url.includes("/jobs/")) {
      forget();
      location.assign(response.url);
      return false;
    }
    const fresh = new DOMParser().parseFromString((await response?.text()) ?? "", "text/html");
    if (!fresh.getElementById("editor")) {
      const said = fresh.querySelector("#content [role=alert], h1")?.textContent;
      window.toast(response ? `Not done: ${said ?? response.status}` : "The server cannot be reached.", true);
      return false;
    }
    const etag = form()?.elements.etag.value;
    document.getElementById("content").replaceChildren(...fresh.getElementById("content").childNodes);
    document.title = fresh.title;
    const isSaved = ["save", "start"].includes(action) && !["", etag].includes(form().elements.etag.value);
    if (isSaved) forget();
    dress();
    return true;
  }

  async function click(button) {
    const [action, entry] = button.value.split(":"), top = scrollY, before = view(), from = document.activeElement;
    changed ||= ["add", "remove"].includes(action);
    if (!await press(button.value)) {
      from.focus();
      return;
    }
    if (view() !== before) history.pushState({ editor: draft, view: view() }, "", address());
    else place();
    if (entry) {
      form().querySelector(`[value="add:${entry.split(".")[0]}"]`)?.focus({ preventScroll: true });
      scrollTo(0, top);
    } else {
      document.getElementById("content").focus({ preventScroll: true });
      scrollTo(0, 0);
    }
  }

  document.addEventListener("input", (event) => { changed ||= form()?.contains(event.target); });
  document.addEventListener("submit", (event) => {
    if (event.target !== form() || !event.submitter) return;
    event.preventDefault();
    click(event.submitter);
  });
  addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
  addEventListener("pagehide", () => { if (changed) keep(); });
  addEventListener("visibilitychange", () => { if (changed && document.hidden) keep(); }); // the last that a phone tells
  addEventListener("popstate", async () => {
    const { editor, view: wanted } = history.state ?? {}; // none of a place on this page that was just gone to
    await busy;
    if (editor === draft && form() && wanted !== view()) await press(wanted); // another view of what is written now
    place();
  });

  // -- the YAML text -----------------------------------------------------------------------------------

  let text = null, gutter = null; // those of the page as it is now
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

  function goTo(line) {
    const before = text.value.split("\n").slice(0, line - 1).join("\n");
    const start = before.length + (line > 1 ? 1 : 0), end = text.value.indexOf("\n", start);
    text.focus();
    text.setSelectionRange(start, end < 0 ? text.value.length : end);
    text.scrollTop = Math.max(0, (line - 5) * parseFloat(getComputedStyle(text).lineHeight));
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-line]");
    if (!link || !text) return;
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
  function indent(event) {
    // Two blanks for Tab; after Escape, Tab leaves the text.
    if (event.key === "Escape") { text.dataset.leave = "yes"; return; }
    if (event.key === "Tab" && !event.shiftKey && !text.dataset.leave) {
      event.preventDefault();
      text.setRangeText("  ", text.selectionStart, text.selectionEnd, "end");
      text.dispatchEvent(new Event("input", { bubbles: true }));
      return;
    }
    delete text.dataset.leave;
  }

  // What a page needs once it is shown.
  function dress() {
    clearTimeout(timer);
    asked += 1; // an answer about the text before is not shown
    text = document.getElementById("text");
    gutter = document.getElementById("gutter");
    if (!text) return;
    text.addEventListener("scroll", () => { gutter.scrollTop = text.scrollTop; });
    text.addEventListener("input", () => { number(); clearTimeout(timer); timer = setTimeout(check, 500); });
    text.addEventListener("keydown", indent);
    bad = new Set([...document.querySelectorAll("#problems a[data-line]")].map((link) => Number(link.dataset.line)));
    number();
  }

  dress();
  place();
  if (kept) {
    press(wanted, new URLSearchParams(kept)).then((isShown) => {
      place();
      if (!isShown) return;
      changed = true;
      window.toast("What you typed here is shown again.");
    });
  }
})();
