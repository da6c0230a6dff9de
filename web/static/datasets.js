// Pages of datasets: captions that save themselves, files dropped anywhere, arrow keys. Without it every form still works.
"use strict";

(function () {
  document.documentElement.classList.add("scripted");
  const say = (text, bad = false) => window.toast?.(text, bad);
  let ownWrite = 0; // when this page last changed something itself

  // -- captions ------------------------------------------------------------------------------------

  const waiting = new WeakMap(); // form -> timer
  const saving = new WeakMap(); // form -> the save in progress
  const tab = (() => { try { return sessionStorage; } catch { return null; } })(); // null: it is forbidden here
  const KEPT = "caption "; // and the address: what this tab keeps of a caption that was not stored when its page was left

  function setState(form, text) { form.querySelector(".state").textContent = text; }

  const same = (one, other) => one.trim() === other.trim(); // as captions are stored

  function isDirty(form) {
    const area = form.elements.caption;
    return !area.readOnly && !same(area.value, form.saved ?? area.defaultValue);
  }

  function save(form, options = {}) {
    clearTimeout(waiting.get(form));
    const before = saving.get(form) ?? Promise.resolve();
    const next = before.then(() => send(form, options));
    saving.set(form, next.catch(() => {}));
    return next;
  }

  function later(form) {
    setState(form, "Not saved: the server cannot be reached. Trying again …");
    waiting.set(form, setTimeout(() => save(form), 5000));
  }

  const put = (url, etag, caption, keepalive = false) => fetch(url, {
    method: "PUT", credentials: "same-origin", keepalive,
    headers: { "Content-Type": "application/json", "If-Match": etag, Accept: "application/json" },
    body: JSON.stringify({ caption }),
  }).catch(() => null);
  const read = (url) => fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" } }).catch(() => null);

  async function send(form, { keepalive = false, force = false } = {}) {
    if (!isDirty(form) && !force) return;
    const text = form.elements.caption.value;
    setState(form, "Saving …");
    ownWrite = Date.now();
    form.sent = [...(form.sent ?? []), text]; // it may be stored though its answer is lost
    const response = await put(form.dataset.url, form.elements.etag.value, text, keepalive);
    if (response === null) { later(form); return; }
    ownWrite = Date.now();
    const body = await response.json().catch(() => ({}));
    if (response.ok) stored(form, text, body.etag);
    else if (response.status === 412) await meet(form);
    else setState(form, `Not saved: ${body.detail ?? response.status}`);
  }

  function stored(form, text, etag) {
    form.saved = text;
    form.sent = [];
    form.elements.etag.value = etag;
    form.querySelector(".clash-box")?.remove();
    form.classList.remove("clash");
    form.classList.toggle("dirty", isDirty(form));
    setState(form, isDirty(form) ? "" : "Saved");
    if (!isDirty(form)) tab?.removeItem(KEPT + form.dataset.url);
  }

  // Another caption is there than this page knows of: one that it sent itself, however late it arrived, or somebody else's.
  async function meet(form) {
    const response = await read(form.dataset.url);
    if (response === null) { later(form); return; }
    const theirs = await response.json().catch(() => null);
    if (!response.ok || theirs === null) {
      setState(form, response.status === 404 ? "Not saved: the picture is gone." : `Not saved: ${theirs?.detail ?? response.status}`);
    } else if (same(theirs.caption, form.elements.caption.value)) {
      stored(form, form.elements.caption.value, theirs.etag);
    } else if (isOwn(theirs, form.elements.etag.value, form.sent ?? [])) {
      form.elements.etag.value = theirs.etag;
      save(form, { force: true });
    } else {
      clash(form, theirs);
    }
  }

  const isOwn = (theirs, etag, sent) => theirs.etag === etag || sent.some((text) => same(text, theirs.caption));

  // What is sent while a page is left may arrive after the next one was read, or never: the tab keeps it until it is stored.
  function keep(form) {
    const kept = { text: form.elements.caption.value, etag: form.elements.etag.value, sent: form.sent ?? [] };
    try { tab?.setItem(KEPT + form.dataset.url, JSON.stringify(kept)); } catch { /* no room: it is sent all the same */ }
  }

  function recall() {
    const shown = new Map([...document.querySelectorAll("form.caption")].map((form) => [form.dataset.url, form]));
    for (const key of Object.keys(tab ?? {}).filter((each) => each.startsWith(KEPT))) {
      const url = key.slice(KEPT.length), kept = JSON.parse(tab.getItem(key));
      const form = shown.get(url);
      if (!form) finish(url, kept);
      else if (same(form.elements.caption.defaultValue, kept.text)) tab?.removeItem(key);
      else if (!form.elements.caption.readOnly) resume(form, kept);
    }
  }

  function resume(form, kept) {
    tab?.removeItem(KEPT + form.dataset.url); // the page has it now, and keeps it again if it is left
    form.elements.caption.value = kept.text;
    form.elements.etag.value = kept.etag;
    form.sent = [...kept.sent, kept.text];
    form.classList.add("dirty");
    setState(form, "Not saved yet");
    saving.set(form, meet(form));
  }

  // The same where the page shows no such picture; what was changed elsewhere is asked about once one does.
  async function finish(url, kept) {
    const response = await read(url);
    const theirs = response?.ok ? await response.json() : null;
    const isStored = theirs !== null && same(theirs.caption, kept.text);
    const mayStore = theirs !== null && !isStored && isOwn(theirs, kept.etag, kept.sent);
    if (isStored || response?.status === 404 || (mayStore && (await put(url, theirs.etag, kept.text))?.ok)) {
      tab?.removeItem(KEPT + url);
    }
  }

  function clash(form, theirs) {
    form.classList.add("clash");
    setState(form, "Not saved");
    form.querySelector(".clash-box")?.remove();
    const box = document.createElement("div");
    box.className = "clash-box";
    box.setAttribute("role", "alert");
    const said = document.createElement("p");
    said.textContent = "Changed elsewhere since you began. It says now:";
    const text = document.createElement("pre");
    text.textContent = theirs.caption || "(empty)";
    const mine = document.createElement("button");
    const other = document.createElement("button");
    for (const [button, label] of [[mine, "Keep mine"], [other, "Take theirs"]]) {
      button.type = "button";
      button.className = "quiet small";
      button.textContent = label;
    }
    mine.addEventListener("click", () => { form.elements.etag.value = theirs.etag; save(form, { force: true }); form.elements.caption.focus(); });
    other.addEventListener("click", () => {
      form.elements.caption.value = theirs.caption;
      stored(form, theirs.caption, theirs.etag);
      setState(form, "Taken over");
      form.elements.caption.focus();
    });
    const row = document.createElement("div");
    row.className = "row";
    row.append(mine, other);
    box.append(said, text, row);
    form.querySelector(".row").before(box);
  }

  document.addEventListener("input", (event) => {
    const form = event.target.closest?.("form.caption");
    if (!form || event.target.name !== "caption") return;
    form.classList.toggle("dirty", isDirty(form));
    setState(form, isDirty(form) ? "Not saved yet" : "");
    clearTimeout(waiting.get(form));
    if (!form.classList.contains("clash")) waiting.set(form, setTimeout(() => save(form), 1500));
  });
  document.addEventListener("focusout", (event) => {
    const form = event.target.closest?.("form.caption");
    if (form && event.target.name === "caption" && !form.classList.contains("clash")) save(form);
  });
  document.addEventListener("keydown", (event) => {
    const form = event.target.closest?.("form.caption");
    if (form && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(form); }
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest?.("form.caption");
    if (!form) return;
    const remove = event.submitter?.dataset.delete;
    if (remove) {
      event.preventDefault();
      removeCard(form, remove);
    } else if (!event.submitter?.hasAttribute("formaction")) {
      event.preventDefault();
      save(form);
    }
  });
  addEventListener("pagehide", () => {
    for (const form of document.querySelectorAll("form.caption.dirty")) {
      keep(form);
      if (!form.classList.contains("clash")) send(form, { keepalive: true }); // at once: what is on its way may never be answered
    }
  });
  addEventListener("beforeunload", (event) => {
    if (document.querySelector("form.caption.clash")) event.preventDefault();
  });

  recall();

  // -- deleting ------------------------------------------------------------------------------------

  async function removeCard(form, address) {
    const card = form.closest(".picture");
    ownWrite = Date.now();
    const response = await fetch(address, { method: "DELETE", credentials: "same-origin", headers: { Accept: "application/json" } });
    ownWrite = Date.now();
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      say(body.detail ?? `Not deleted (${response.status}).`, true);
      return;
    }
    const identifier = response.headers.get("Trash-Id");
    const kept = [...card.childNodes];
    const text = document.createElement("p");
    text.textContent = `${card.dataset.rel} is in the trash. `;
    const undo = document.createElement("button");
    undo.type = "button";
    undo.className = "quiet small";
    undo.textContent = "Undo";
    text.append(undo);
    text.className = "gone";
    card.replaceChildren(text); // in its place: nothing jumps
    undo.focus();
    undo.addEventListener("click", async () => {
      ownWrite = Date.now();
      const restored = await fetch(`${page.dataset.restore}${identifier}/restore`, { method: "POST", credentials: "same-origin", headers: { Accept: "application/json" } });
      ownWrite = Date.now();
      if (restored.ok) {
        card.replaceChildren(...kept);
        card.querySelector("textarea")?.focus();
      } else {
        const body = await restored.json().catch(() => ({}));
        say(body.detail ?? `Not restored (${restored.status}).`, true);
      }
    });
  }

  // -- uploading -----------------------------------------------------------------------------------

  const page = document.getElementById("dataset");
  const form = document.getElementById("upload");
  const MOST_FILES = 100;
  const MOST_BYTES = 256 * 1024 * 1024;

  // Files of one stem stay together, so that a caption finds its picture.
  function batches(files) {
    const stem = (file) => file.name.replace(/\.[^.]*$/, "").toLowerCase();
    const groups = new Map();
    for (const file of files) groups.set(stem(file), [...(groups.get(stem(file)) ?? []), file]);
    const found = [];
    let batch = [], size = 0;
    for (const group of groups.values()) {
      const more = group.reduce((sum, file) => sum + file.size, 0);
      if (batch.length && (batch.length + group.length > MOST_FILES || size + more > MOST_BYTES)) {
        found.push(batch);
        batch = [];
        size = 0;
      }
      batch.push(...group);
      size += more;
    }
    if (batch.length) found.push(batch);
    return found;
  }

  function post(files, replace, onBytes) {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest(); // fetch cannot tell how much was sent
      request.open("POST", page.dataset.upload);
      request.setRequestHeader("Accept", "application/json");
      request.responseType = "json";
      request.upload.addEventListener("progress", (event) => onBytes(event.loaded));
      request.addEventListener("loadend", () => resolve({ status: request.status, body: request.response ?? {} }));
      const body = new FormData();
      for (const file of files) body.append("files", file, file.name);
      if (replace) body.append("replace", "1");
      request.send(body);
    });
  }

  let uploading = false;
  async function upload(files, replace) {
    if (!files.length) return;
    if (uploading) { say("Wait until the other files are there.", true); return; }
    uploading = true;
    const place = document.getElementById("progress");
    const bar = document.createElement("progress");
    const line = document.createElement("p");
    const list = document.createElement("ul");
    const total = files.reduce((sum, file) => sum + file.size, 0) || 1;
    bar.max = total;
    bar.setAttribute("aria-label", "Upload");
    place.replaceChildren(line, bar, list);
    let sent = 0, saved = 0, left = 0;
    const tell = (text) => { const entry = document.createElement("li"); entry.textContent = text; list.append(entry); left += 1; };
    for (const batch of batches(files)) {
      line.textContent = `Sending ${files.length} file${files.length === 1 ? "" : "s"} …`;
      ownWrite = Date.now();
      const { status, body } = await post(batch, replace, (bytes) => { bar.value = sent + bytes; });
      ownWrite = Date.now();
      sent += batch.reduce((sum, file) => sum + file.size, 0);
      if (status === 201) {
        saved += body.saved.length;
        for (const each of body.skipped) tell(`${each.name}: ${each.reason}`);
      } else {
        tell(`${batch.map((file) => file.name).slice(0, 3).join(", ")}${batch.length > 3 ? " …" : ""}: ${body.detail ?? (status ? `the server answered ${status}` : "the server cannot be reached")}`);
      }
    }
    line.textContent = `${saved} added${left ? `, ${left} left out` : ""}.`;
    bar.remove();
    uploading = false;
    form.reset();
    await refresh();
  }

  // The pictures anew, unless somebody is writing.
  async function refresh() {
    if (document.querySelector("form.caption.dirty")) return;
    const response = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
    if (!response.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const id of ["pictures", "filters"]) {
      const part = fresh.getElementById(id);
      if (part) document.getElementById(id).replaceWith(document.adoptNode(part));
    }
  }

  if (page && form) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      upload([...form.elements.files.files], form.elements.replace.checked);
    });
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    let depth = 0;
    addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; document.body.classList.add("dropping"); event.preventDefault(); } });
    addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth -= 1; if (depth <= 0) document.body.classList.remove("dropping"); } });
    addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      depth = 0;
      document.body.classList.remove("dropping");
      if (!hasFiles(event)) return;
      event.preventDefault();
      upload([...event.dataTransfer.files], form.elements.replace.checked);
    });
    addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) { event.preventDefault(); upload(files, form.elements.replace.checked); }
    });
    // Another tab, or the trainer's tools, changed something: say so, and let what is being written alone.
    document.body.addEventListener(`dataset-${page.dataset.name}`, () => {
      setTimeout(() => { if (Date.now() - ownWrite > 3000) document.getElementById("changed").hidden = false; }, 500);
    });
  }

  // -- one picture ---------------------------------------------------------------------------------

  if (document.getElementById("picture")) {
    document.addEventListener("keydown", (event) => {
      if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      const target = { ArrowLeft: "before", ArrowRight: "after" }[event.key];
      const link = target && document.getElementById(target);
      if (link) { event.preventDefault(); link.click(); }
    });
  }
})();
