// Shows the pictures of a job, which templates/job.html draws, and answers its buttons.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function button(words, act) {
  const made = element("button", { type: "button" }, words);
  made.addEventListener("click", () => act(made));
  return made;
}

// -- patching: only what differs is changed, so that focus, selection, scrolling and folds survive ---------

// Change `old` until it looks like `wanted`. Children of an element with data-own belong to this file.
function patch(old, wanted) {
  if (old.isEqualNode(wanted)) return; // most are, and the browser sees that faster than this file
  if (old.nodeType === Node.TEXT_NODE) return patchText(old, wanted.data);
  for (const { name, value } of wanted.attributes)
    // Once a part is there, the reader folds it.
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (name !== "open" && !wanted.hasAttribute(name)) old.removeAttribute(name);
  if (!old.hasAttribute("data-own")) patchChildren(old, wanted);
}

// Replace only the middle that differs: what is selected before and after it stays selected.
function patchText(old, text) {
  if (old.data === text) return;
  const most = Math.min(old.length, text.length);
  let start = 0;
  while (start < most && old.data[start] === text[start]) start++;
  let end = 0;
  while (end < most - start && old.data.at(-1 - end) === text.at(-1 - end)) end++;
  const box = old.parentElement;
  const follows = box.matches("pre") && box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
  old.replaceData(start, old.length - start - end, text.slice(start, text.length - end));
  if (follows) box.scrollTop = box.scrollHeight;
}

const keyOf = (node) => node.dataset?.key;

function patchChildren(old, wanted) {
  const keys = new Set([...wanted.children].map(keyOf));
  const kept = new Map();
  for (const child of [...old.children])
    if (keyOf(child) === undefined) continue;
    else if (keys.has(keyOf(child))) kept.set(keyOf(child), child);
    else child.remove();
  let next = old.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = keyOf(child);
    const same = kept.get(key);
    // Parts without a key that are gone.
    while (same && next && next !== same && keyOf(next) === undefined) next = removed(next);
    if (same && next !== same) old.insertBefore(same, next);
    if (same) patch(same, child);
    else if (key === undefined && next && isAlike(next, child)) patch(next, child);
    else {
      old.insertBefore(child, next);
      continue;
    }
    next = (same ?? next).nextSibling;
  }
  while (next) next = removed(next);
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

const isAlike = (a, b) => a.nodeName === b.nodeName && keyOf(a) === undefined;

// -- the end of a job ----------------------------------------------------------------------------------

// The browser asks for permission. When the job is over, it tells a user who has left the page.
async function askToNotify(asking, notice) {
  const answer = await Notification.requestPermission();
  asking.hidden = answer === "granted";
  notice.textContent = answer === "denied" ? FORBIDDEN : "";
  notice.hidden = answer !== "denied";
}

function notify({ title, body }) {
  if (document.hidden && "Notification" in window && Notification.permission === "granted")
    new Notification(title, { body });
}

// When the job is over, its HTML stays in the notebook. A page that was reloaded does not know which output
// the kernel's update is for, and neither does one that was opened later: there this puts the HTML in.
// A page without a notebook, such as Voila's, replaces no outputs: there the view stays.
function keep(model) {
  const final = model.get("final");
  const cells = model.widget_manager?.context?.model?.cells;
  if (!final.data || !cells) return;
  const shown = "application/vnd.jupyter.widget-view+json";
  for (const cell of cells)
    for (let i = 0; i < (cell.outputs?.length ?? 0); i++)
      if (cell.outputs.get(i).data[shown]?.model_id === final.id)
        cell.outputs.set(i, { output_type: "display_data", metadata: {}, data: final.data });
  model.send("kept");
}

// The HTML of a job that failed has an empty place, where this offers to run again what failed. In a saved
// notebook the place stays empty, since no kernel would hear of a click. So it does in a page that was
// reloaded: Jupyter no longer knows there which output to update.
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
        retry.className = "nbstreamq-retry";
        place.append(retry, element("output", {}, model.get("trouble")));
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
    if (model.get("final").data) notify(model.get("final"));
    keep(model);
  };
  model.on("change:final", end);
  keep(model);
  return () => {
    model.off("change:final", end);
    withdraw();
  };
}

// -- the live view -------------------------------------------------------------------------------------

const FORBIDDEN =
  "The browser forbids notifications from this page. Allow them in its settings for this site, and try again.";
const GONE = new Set(["dead", "terminating", "restarting", "autorestarting"]);
const ENDED =
  "The kernel has ended. This is its last picture. If the job has a name, it goes on: run this cell again to see it.";

// The buttons, why one failed, and whether the kernel is there to answer them.
function makeButtons(model) {
  const retry = button("Retry failed", () => model.send("retry"));
  const add = button("Add worker", () => model.send("add"));
  const forbidden = element("div", { class: "nbstreamq-notice", role: "status", hidden: "" });
  const ask = button("Notify me", () => askToNotify(ask, forbidden));
  ask.title = "Get a message from the browser when the job is over";
  ask.hidden = !("Notification" in window) || Notification.permission === "granted";
  let isCancelling = false;
  const cancel = button("Cancel", () => {
    isCancelling = cancel.disabled = true;
    cancel.textContent = "Cancelling";
    model.send("cancel");
  });
  cancel.title = "A cell that waits for the job cancels it, too, if you interrupt it twice within two seconds";
  const trouble = element("div", { class: "nbstreamq-notice", role: "alert" });
  const ended = element("div", { class: "nbstreamq-notice", role: "status" }, ENDED);
  const row = element("div", { class: "nbstreamq-buttons" }, cancel, retry, add, ask);
  const update = () => {
    retry.hidden = !model.get("can_retry");
    trouble.textContent = model.get("trouble");
    trouble.hidden = !model.get("trouble");
  };
  const connect = (isLive) => {
    ended.hidden = isLive;
    for (const one of [retry, add, ask]) one.disabled = !isLive;
    cancel.disabled = !isLive || isCancelling;
    if (!isLive) cancel.textContent = "Cancel";
  };
  // Where the view stays when the job is over, failed items can be run again.
  const end = (isOver) => {
    cancel.hidden = add.hidden = isOver;
    if (isOver) isCancelling = cancel.disabled = false;
    if (!isCancelling) cancel.textContent = "Cancel";
  };
  return { parts: [row, forbidden, trouble, ended], update, connect, end };
}

// JupyterLab tells its widgets of a restart, but not that the kernel was shut down or has died.
function watchKernel(model, part) {
  const session = model.widget_manager?.context?.sessionContext;
  if (!session) return () => {};
  const look = () => {
    const status = session.session?.kernel?.status;
    if (GONE.has(status ?? "dead")) part();
  };
  for (const signal of [session.statusChanged, session.kernelChanged]) signal.connect(look);
  return () => {
    for (const signal of [session.statusChanged, session.kernelChanged]) signal.disconnect(look);
  };
}

function render({ model, el }) {
  const buttons = makeButtons(model);
  const root = element("div", { class: "nbstreamq-job" });
  const draw = () => {
    const wanted = element("template");
    // Each text in it was escaped where it was drawn.
    wanted.innerHTML = model.get("html");
    patchChildren(root, wanted.content);
    const own = root.querySelector("[data-own]");
    if (own && !own.firstChild) own.append(...buttons.parts);
    buttons.update();
    if (own) buttons.end(own.dataset.own === "over");
  };
  // The page is told only that something about the connection has changed: a new picture says that it works.
  const part = () => {
    buttons.connect(false);
    const numbers = root.querySelector("figcaption span");
    const words = numbers?.textContent.split(" · ").filter((word) => !/ (left|busy)$/.test(word));
    if (words) numbers.textContent = words.join(" · "); // nobody knows those any more
  };
  const follow = () => {
    buttons.connect(true);
    draw();
  };
  const watched = {
    "change:html": follow,
    "change:can_retry": buttons.update,
    "change:trouble": buttons.update,
    comm_live_update: part,
  };
  for (const [what, act] of Object.entries(watched)) model.on(what, act);
  const unwatch = watchKernel(model, part);
  follow();
  el.append(root);
  return () => {
    for (const [what, act] of Object.entries(watched)) model.off(what, act);
    unwatch();
  };
}

export default { initialize, render };
