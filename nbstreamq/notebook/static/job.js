// Draws the snapshots of a job: see view.py for what they hold, live.py for their words. Text only ever goes in as text.

const ROW = 12;

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

function drawStrip(svg, s) {
  const n = s.n_columns;
  svg.setAttribute("viewBox", `0 0 ${n} ${ROW * Math.max(1, s.strip.length)}`);
  svg.setAttribute("height", ROW * s.strip.length);
  const marks = [];
  s.strip.forEach((row, k) => {
    for (let i = 0; i < n; i++) {
      const place = { x: i, y: ROW * k + 1, width: 1, height: ROW - 2 };
      if (row.busy[i])
        marks.push(drawing("rect", { ...place, class: "busy", "fill-opacity": row.busy[i] }));
      if (row.trouble[i]) marks.push(drawing("rect", { ...place, class: "trouble" }));
    }
  });
  svg.replaceChildren(...marks);
  svg.setAttribute("aria-label", `What ${s.strip.length} workers did, over ${s.duration}`);
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

function render({ model, el }) {
  const name = element("b");
  const numbers = element("span", { class: "numbers", role: "status" });
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
  const bar = element("div", { class: "bar", role: "progressbar", "aria-valuemin": 0 });
  const obstacle = element("div", { class: "obstacle", role: "alert" });
  const svg = drawing("svg", { role: "img", preserveAspectRatio: "none" });
  const strip = element("details", { open: "" }, element("summary", {}, "workers"), svg);
  const progress = element("div");
  const errors = element("div");
  const text = element("pre", { tabindex: 0 });
  const output = element("details", {}, element("summary", {}, "output"), text);
  const root = element(
    "div",
    { class: "nbstreamq-job", role: "group" },
    element("div", { class: "head" }, name, numbers, retry, add, ask, cancel),
    bar, obstacle, strip, progress, errors, output,
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
    drawStrip(svg, s);
    drawProgress(progress, s);
    drawErrors(errors, s);
    drawOutput(output, text, s);
  };
  const over = (message) => message === "over" && notify(model);
  model.on("change:snapshot", draw);
  model.on("msg:custom", over);
  draw();
  el.append(root);
  return () => {
    model.off("change:snapshot", draw);
    model.off("msg:custom", over);
  };
}

export default { render };
