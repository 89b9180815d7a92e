// Draws the snapshots of a job: see view.py for what they hold, live.py for their words. Text only ever goes in as text.

const ROW = 14;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawing(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function drawBar(bar, s) {
  const over = s.n - s.counts.waiting - s.counts.running;
  bar.setAttribute("aria-valuemax", s.n);
  bar.setAttribute("aria-valuenow", over);
  bar.replaceChildren(
    ...["done", "failed", "cancelled", "running"]
      .filter((state) => s.counts[state])
      .map((state) => {
        const part = element("div", { class: state, title: `${s.counts[state]} ${state}` });
        part.style.width = `${(100 * s.counts[state]) / Math.max(1, s.n)}%`;
        return part;
      }),
  );
}

// A row for each worker: its name, when it was busy (with what, says the part one points at), and the same
// in words. Rows stay, and change: a part that was made anew each time could not be pointed at.
function drawStrip(table, s) {
  while (table.children.length > s.strip.length) table.lastChild.remove();
  s.strip.forEach((row, i) => drawWorker(table.children[i] ?? table.appendChild(emptyRow(row)), row, s));
}

function emptyRow(row) {
  const svg = drawing("svg", { preserveAspectRatio: "none", height: ROW, "aria-hidden": "true" });
  row.busy.forEach((_, i) => {
    const busy = drawing("rect", { x: i, y: 2, width: 1, height: ROW - 4, class: "busy" });
    busy.append(drawing("title", {}));
    svg.append(busy, drawing("rect", { x: i, y: 0, width: 1, height: ROW, class: "trouble" }));
  });
  return element("tr", {}, element("th", { scope: "row" }), element("td", {}, svg), element("td"));
}

function drawWorker(shown, row, s) {
  const [name, drawn, words] = shown.children;
  const svg = drawn.firstChild;
  name.textContent = row.worker;
  words.textContent = row.words;
  svg.setAttribute("viewBox", `0 0 ${s.n_columns} ${ROW}`);
  row.busy.forEach((share, i) => {
    const [busy, trouble] = [svg.children[2 * i], svg.children[2 * i + 1]];
    busy.setAttribute("fill-opacity", share);
    busy.firstChild.textContent = row.ran[i];
    trouble.setAttribute("display", row.trouble[i] ? "inline" : "none");
  });
}

// Keeps what the reader has unfolded: only new errors are added, and those run again removed.
function drawErrors(box, s) {
  const there = new Set(s.errors.map((error) => String(error.item)));
  for (const child of [...box.children]) if (!there.has(child.dataset.item)) child.remove();
  const shown = new Set([...box.children].map((child) => child.dataset.item));
  for (const error of s.errors) {
    if (shown.has(String(error.item))) continue;
    const folded = element(
      "details",
      { "data-item": error.item },
      element("summary", {}, `✗ item ${error.item}: ${error.summary}`),
      element("pre", {}, error.traceback),
    );
    box.append(folded);
  }
}

function drawProgress(box, s) {
  box.replaceChildren(
    ...s.progress.map((p) => {
      const label = p.total === null ? `${p.done} steps` : `${p.done} of ${p.total}`;
      const bar = element("progress", { "aria-label": `item ${p.item}` });
      if (p.total !== null) Object.assign(bar, { max: p.total || 1, value: p.done });
      return element("div", {}, `item ${p.item}: `, bar, ` ${label}`);
    }),
  );
}

function drawOutput(box, text, s) {
  box.hidden = s.output.length === 0;
  const lines = s.output.flatMap((o) =>
    o.text.split("\n").filter(Boolean).map((line) => `[${o.item}] ${line}`),
  );
  const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
  text.textContent = lines.join("\n");
  if (atEnd) text.scrollTop = text.scrollHeight;
}

function button(words, act) {
  const made = element("button", { type: "button" }, words);
  made.addEventListener("click", () => act(made));
  return made;
}

// The browser asks its user; later, who has left the page is told that the job is over.
async function askToNotify(asking) {
  asking.hidden = (await Notification.requestPermission()) !== "default";
}

function notify(model) {
  const s = model.get("snapshot");
  if (document.hidden && "Notification" in window && Notification.permission === "granted")
    new Notification(`${s.name}: ${s.state}`, { body: s.summary });
}

// When the job is over, its HTML stays in the notebook. A page that was loaded anew does not know which
// output the kernel's update is for, nor does one that was opened later: there the HTML is put in here.
function keep(model) {
  const final = model.get("final");
  if (!final.data) return;
  const shown = "application/vnd.jupyter.widget-view+json";
  for (const cell of model.widget_manager?.context?.model?.cells ?? [])
    for (let i = 0; i < (cell.outputs?.length ?? 0); i++)
      if (cell.outputs.get(i).data[shown]?.model_id === final.id)
        cell.outputs.set(i, { output_type: "display_data", metadata: {}, data: final.data });
  model.send("kept");
}

// When the job is over, its HTML has an empty place where this offers to run again what failed. In a
// saved notebook that place stays empty: no kernel would hear of a click. So it does in a page that was
// loaded anew: Jupyter no longer knows there which output is to be updated.
function offerRetry(model) {
  if (model.get("offered")) return () => {};
  model.set("offered", true);
  model.save_changes();
  const places = document.getElementsByClassName(model.get("place"));
  const clear = () => [...places].forEach((place) => place.replaceChildren());
  const offer = () => {
    for (const place of places)
      if (!place.firstChild) {
        const retry = button("Retry failed", () => model.send("retry"));
        const trouble = element("output", {}, model.get("trouble"));
        retry.className = "nbstreamq-retry";
        place.append(retry, trouble);
      }
  };
  const explain = () => {
    clear();
    offer();
  };
  const observer = new MutationObserver(offer);
  observer.observe(document.body, { childList: true, subtree: true });
  model.on("change:trouble", explain);
  offer();
  return () => {
    observer.disconnect();
    model.off("change:trouble", explain);
    clear();
  };
}

function initialize({ model }) {
  const withdraw = offerRetry(model);
  const end = () => {
    if (model.get("final").data) notify(model);
    keep(model);
  };
  model.on("change:final", end);
  keep(model);
  return () => {
    model.off("change:final", end);
    withdraw();
  };
}

function render({ model, el }) {
  const name = element("b");
  const numbers = element("span", { class: "numbers" });
  const retry = button("Retry failed", () => model.send("retry"));
  const add = button("Add worker", () => model.send("add"));
  const ask = button("Notify me", askToNotify);
  ask.title = "Have the browser say when the job is over";
  ask.hidden = !("Notification" in window) || Notification.permission !== "default";
  const cancel = button("Cancel", () => {
    cancel.disabled = true;
    cancel.textContent = "Cancelling";
    model.send("cancel");
  });
  cancel.title = "Or interrupt, twice within two seconds, a cell that waits for it";
  const bar = element("div", { class: "bar", role: "progressbar", "aria-label": "items that are over", "aria-valuemin": 0 });
  const obstacle = element("div", { class: "obstacle", role: "alert" });
  const trouble = element("div", { class: "obstacle", role: "alert" });
  const table = element("tbody");
  const title = element("summary", {}, "workers");
  const strip = element("details", { open: "" }, title, element("table", {}, table));
  const progress = element("div");
  const errors = element("div");
  const text = element("pre", { tabindex: 0 });
  const output = element("details", {}, element("summary", {}, "output"), text);
  const root = element(
    "div",
    { class: "nbstreamq-job", role: "group" },
    element("div", { class: "head" }, name, numbers),
    element("div", { class: "buttons" }, cancel, retry, add, ask),
    bar, obstacle, trouble, strip, progress, errors, output,
  );
  const draw = () => {
    const s = model.get("snapshot");
    if (!s || !s.counts) return;
    root.setAttribute("aria-label", `Job ${s.name}`);
    name.textContent = s.name;
    numbers.textContent = s.summary;
    retry.hidden = !s.counts.failed;
    drawBar(bar, s);
    obstacle.hidden = !s.obstacle;
    obstacle.textContent = s.obstacle ? `Nothing can run: ${s.obstacle}` : "";
    strip.hidden = s.strip.length === 0;
    drawStrip(table, s);
    drawProgress(progress, s);
    drawErrors(errors, s);
    drawOutput(output, text, s);
  };
  const explain = () => {
    trouble.hidden = !model.get("trouble");
    trouble.textContent = model.get("trouble");
  };
  // When the kernel is restarted, this stays the last picture, and nothing answers the buttons. The page
  // is told only that something about the connection has changed: a new picture says that it works.
  const ended = element("div", { class: "obstacle", role: "status" });
  ended.textContent =
    "The kernel has ended, and this is its last picture. If the job has a name, it goes on: run this cell again to see it.";
  const connect = (isLive) => {
    ended.hidden = isLive;
    for (const one of [retry, add, ask]) one.disabled = !isLive;
    if (!isLive) cancel.disabled = true;
    else if (cancel.textContent === "Cancel") cancel.disabled = false;
  };
  const part = () => connect(false);
  const follow = () => {
    connect(true);
    draw();
  };
  connect(true);
  bar.after(ended);
  model.on("change:snapshot", follow);
  model.on("change:trouble", explain);
  model.on("comm_live_update", part);
  draw();
  explain();
  el.append(root);
  return () => {
    model.off("comm_live_update", part);
    model.off("change:snapshot", follow);
    model.off("change:trouble", explain);
  };
}

export default { initialize, render };
