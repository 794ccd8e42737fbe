"use strict";
// The gallery: one picture at a time, a list beside it, verdicts in localStorage until they are saved.
// Texts from outside go into the page by textContent alone.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const SVG = "http://www.w3.org/2000/svg";
const KINDS = {
  review: "needs review", near: "near the threshold", accepted: "accepted", dropped: "dropped",
};
const FILTERS = [
  ["all", (p) => true],
  ...Object.entries(KINDS).map(([kind, name]) => [name, (p) => p.kind === kind]),
  ["not judged", (p) => !verdictOf(p)],
];
const CURSORS = { nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw", n: "ns", s: "ns", e: "ew", w: "ew" };
const SMALLEST = 2;     // pixels of the picture: a smaller box is a slip of the mouse
const CLICK = 3;        // pixels of the screen: a shorter way is a click

const byId = new Map(data.pictures.map((p) => [p.id, p]));
let entries = Object.create(null);  // what was decided in this page: id -> {sha256, base, verdict, boxes}
let history = [];       // [id, the entry before], the last change last
let saved = "";         // what the last saved file said
let visible = [];       // pictures under the filter, fixed until it is chosen again
let filter = 0;
let current = null;     // the picture on the stage
let selected = -1;      // index of the chosen box
let pen = 0;            // class of the next box
let drag = null;

// --- verdicts ---------------------------------------------------------------------------------

// A verdict counts for the picture and the labels that it was given on.
const baseOf = (p) => JSON.stringify([p.known, p.boxes]);
const entryOf = (p) => entries[p.id];
const verdictOf = (p) => (entryOf(p) ? entryOf(p).verdict : p.known);
const boxesOf = (p) => (entryOf(p) && entryOf(p).boxes ? entryOf(p).boxes : p.boxes);

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(data.key) || "{}");
    for (const [id, entry] of Object.entries(kept.entries || {})) {
      const p = byId.get(id);
      if (p && entry.sha256 === p.sha256 && entry.base === baseOf(p)) entries[id] = entry;
    }
    saved = kept.saved || "";
  } catch (error) {
    say("This browser keeps nothing for files: save your verdicts before you close the page.");
  }
}

function keep() {
  try {
    localStorage.setItem(data.key, JSON.stringify({ entries, saved }));
  } catch (error) {
    say("This browser keeps nothing for files: save your verdicts before you close the page.");
  }
}

function put(p, entry) {
  history.push([p.id, entryOf(p) || null]);
  if (entry) entries[p.id] = { sha256: p.sha256, base: baseOf(p), ...entry };
  else delete entries[p.id];
  keep();
  showVerdict(p);
}

function accept() {
  const boxes = boxesOf(current);
  if (!(boxes && boxes.length) && !current.background) {
    say("It has no box: draw one, click a dashed one, or say that there is no animal (e).");
    return;
  }
  put(current, { verdict: "accept", boxes });
  step(1);
}

function reject() {
  put(current, { verdict: "reject", boxes: entryOf(current) ? entryOf(current).boxes : null });
  step(1);
}

function acceptEmpty() {
  put(current, { verdict: "accept", boxes: [] });
  step(1);
}

function undo() {
  const last = history.pop();
  if (!last) return say("There is nothing to undo.");
  const [id, before] = last;
  if (before) entries[id] = before;
  else delete entries[id];
  keep();
  show(byId.get(id));
  showVerdict(current);
}

function fileText() {
  const verdicts = data.pictures.filter(entryOf).map((p) => {
    const { verdict, boxes } = entryOf(p);
    const judged = { image_id: p.id, sha256: p.sha256, verdict };
    if (verdict === "accept" && boxes)
      judged.boxes = boxes.map((box) => ({ xyxy: box.xyxy, class_id: box.class_id }));
    return judged;
  });
  const file = { synthdet_verdicts: 1, run: data.run, classes: data.classes, verdicts };
  return JSON.stringify(file, null, 1) + "\n";
}

function save() {
  const text = fileText();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "curation-verdicts.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = text;
  keep();
  showProgress();
  say("Saved. Bring them in: synthdet curate RUN --verdicts curation-verdicts.json");
}

// --- the page around the picture --------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const source = (block) => `data:image/jpeg;base64,${$(block).textContent}`;

let silence = 0;
function say(text) {
  $("toast").textContent = text;
  $("toast").classList.add("on");
  clearTimeout(silence);
  silence = setTimeout(() => $("toast").classList.remove("on"), 4000);
}

function showProgress() {
  const judged = data.pictures.filter(verdictOf).length;
  const given = Object.keys(entries).length;
  const unsaved = given && fileText() !== saved;
  $("progress").textContent = `${judged} of ${data.pictures.length} judged` + (unsaved ? " · not saved yet" : "");
  $("save").disabled = !given;
  $("undo").disabled = !history.length;
}

function showVerdict(p) {
  const thumb = $(`thumb-${p.id}`);
  const verdict = verdictOf(p) || "";
  if (thumb) thumb.dataset.verdict = verdict;
  showProgress();
  if (p === current) show(p);
}

// Pictures of the list are decoded when they come into sight.
const sight = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const image = target.firstChild;
    if (isIntersecting && !image.src) image.src = source(byId.get(target.dataset.picture).block);
  }
}, { root: $("list"), rootMargin: "400px" });

function choose(number) {
  filter = number;
  visible = data.pictures.filter(FILTERS[filter][1]);
  sight.disconnect();
  const children = [];
  let kind = null;
  for (const p of visible) {
    if (p.kind !== kind) {
      kind = p.kind;
      children.push(make("h2", { textContent: KINDS[kind] }));
    }
    const thumb = make("button", { id: `thumb-${p.id}`, className: "thumb", type: "button", title: p.id },
      make("img", { alt: p.id }));
    thumb.dataset.picture = p.id;
    thumb.dataset.verdict = verdictOf(p) || "";
    thumb.addEventListener("click", () => show(p));
    sight.observe(thumb);
    children.push(thumb);
  }
  $("list").replaceChildren(...children);
  [...$("kinds").children].forEach((button, i) => button.setAttribute("aria-pressed", i === filter));
  show(visible[0] || null);
}

function step(by) {
  const next = visible[visible.indexOf(current) + by];
  if (next) show(next);
  else say(by > 0 ? "That was the last one." : "That was the first one.");
}

const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));

function showFacts(p) {
  const boxes = boxesOf(p);
  const decided = p.kept === null ? "not filtered yet" : p.kept ? "kept by the filter" : "dropped by the filter";
  const rows = [
    ["picture", p.id],
    ["status", [decided, p.status && `label: ${p.status}`].filter(Boolean).join(", ")],
    ["reason", p.reason],
    ["doubt", p.doubt],
    ["prompt", p.prompt],
    ["seed", String(p.seed)],
    ["similarity", number(p.similarity)],
    ["to threshold", p.margin === null ? null : `${p.margin < 0 ? "−" : "+"}${Math.abs(p.margin).toFixed(3)}`],
    ["boxes", boxes ? boxes.map(describe).join(", ") || "none" : "nobody has drawn any"],
  ];
  $("facts").replaceChildren(...rows.filter(([, value]) => value !== null && value !== "").flatMap(
    ([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
}

function describe(box) {
  const name = data.classes[box.class_id] || `class ${box.class_id}`;
  return box.confidence === null ? name : `${name} ${box.confidence.toFixed(2)}`;
}

function showNearest(p) {
  const real = p.nearest === null ? null : data.reals[p.nearest];
  $("nearest").replaceChildren();
  $("nearest-name").textContent = real ? `${p.nearest} · similarity ${number(p.nearestSimilarity)}` : "none";
  $("nearest").style.display = real ? "" : "none";
  if (!real) return;
  $("nearest").setAttribute("viewBox", `0 0 ${real.width} ${real.height}`);
  $("nearest").append(makeSvg("image", { href: source(real.block), width: real.width, height: real.height }),
    ...real.boxes.map((box) => makeSvg("rect", { class: "real", ...corners(box.xyxy) })));
}

function show(p) {
  if (p !== current) selected = -1;
  const before = current && $(`thumb-${current.id}`);
  if (before) before.removeAttribute("aria-current");
  current = p;
  $("actions").style.visibility = p ? "" : "hidden";
  if (!p) {
    canvas.replaceChildren();
    $("facts").replaceChildren();
    $("verdict").textContent = "There is no such picture.";
    $("nearest").style.display = "none";
    $("nearest-name").textContent = "";
    return;
  }
  const thumb = $(`thumb-${p.id}`);
  if (thumb) {
    thumb.setAttribute("aria-current", "true");
    thumb.scrollIntoView({ block: "nearest" });
  }
  const verdict = verdictOf(p);
  $("verdict").dataset.verdict = verdict || "";
  $("verdict").textContent = !verdict ? "No verdict yet"
    : `${verdict === "accept" ? "Accepted" : "Rejected"}${entryOf(p) ? "" : " in an earlier look"}`;
  showFacts(p);
  showNearest(p);
  draw();
}

// --- boxes --------------------------------------------------------------------------------------

const corners = ([left, top, right, bottom]) => ({ x: left, y: top, width: right - left, height: bottom - top });

// Pixels of the picture that one pixel of the screen covers.
function unit() {
  const matrix = canvas.getScreenCTM();
  return matrix && matrix.a ? 1 / matrix.a : 1;
}

function draw() {
  const p = current;
  if (canvas.dataset.picture !== p.id) {
    canvas.dataset.picture = p.id;
    canvas.setAttribute("viewBox", `0 0 ${p.width} ${p.height}`);
    canvas.replaceChildren(makeSvg("image", { href: source(p.block), width: p.width, height: p.height }), makeSvg("g", {}));
  }
  const boxes = drag && drag.boxes ? drag.boxes : boxesOf(p) || [];
  const shapes = [];
  for (const [index, box] of (p.raw || []).entries())
    if (!boxes.some((other) => overlap(box.xyxy, other.xyxy) > 0.7))
      shapes.push(makeSvg("rect", { class: "raw", "data-raw": index, ...corners(box.xyxy) }));
  const size = unit();
  for (const [index, box] of boxes.entries()) {
    const kinds = ["box", box.confidence === null ? "edited" : "", index === selected ? "selected" : ""];
    shapes.push(makeSvg("rect", { class: kinds.join(" "), "data-box": index, ...corners(box.xyxy) }));
    const above = box.xyxy[1] > 18 * size;
    const text = makeSvg("text", { x: box.xyxy[0], y: above ? box.xyxy[1] - 4 * size : box.xyxy[3] + 15 * size,
      "font-size": 13 * size, "stroke-width": 3 * size });
    text.textContent = describe(box);
    shapes.push(text);
  }
  if (boxes[selected]) shapes.push(...handles(boxes[selected].xyxy, size));
  canvas.lastChild.replaceChildren(...shapes);
  const only = data.classes.length < 2;
  $("class-row").hidden = only;
  $("class").value = String(boxes[selected] ? boxes[selected].class_id : pen);
}

function handles([left, top, right, bottom], size) {
  const side = 9 * size;
  const places = { nw: [left, top], n: [(left + right) / 2, top], ne: [right, top], e: [right, (top + bottom) / 2],
    se: [right, bottom], s: [(left + right) / 2, bottom], sw: [left, bottom], w: [left, (top + bottom) / 2] };
  return Object.entries(places).map(([name, [x, y]]) => {
    const handle = makeSvg("rect", { class: "handle", "data-handle": name, x: x - side / 2, y: y - side / 2, width: side, height: side });
    handle.style.cursor = `${CURSORS[name]}-resize`;
    return handle;
  });
}

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  return (width * height) / (area(a) + area(b) - width * height);
}

function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(canvas.getScreenCTM().inverse());
  return [point.x, point.y];
}

const round = (value) => Math.round(value * 100) / 100;
const within = (value, low, high) => Math.min(Math.max(value, low), high);

function moved(xyxy, how, dx, dy) {
  let [left, top, right, bottom] = xyxy;
  const { width, height } = current;
  if (how === "move") {
    dx = within(dx, -left, width - right);
    dy = within(dy, -top, height - bottom);
    return [left + dx, top + dy, right + dx, bottom + dy].map(round);
  }
  if (how.includes("w")) left = within(left + dx, 0, width);
  if (how.includes("e")) right = within(right + dx, 0, width);
  if (how.includes("n")) top = within(top + dy, 0, height);
  if (how.includes("s")) bottom = within(bottom + dy, 0, height);
  return [Math.min(left, right), Math.min(top, bottom), Math.max(left, right), Math.max(top, bottom)].map(round);
}

function setBoxes(boxes) {
  put(current, { verdict: "accept", boxes });
}

canvas.addEventListener("pointerdown", (event) => {
  if (!current || event.button !== 0) return;
  const { handle, box, raw } = event.target.dataset;
  const [x, y] = place(event);
  const boxes = (boxesOf(current) || []).map((one) => ({ ...one }));
  drag = { x, y, screen: [event.clientX, event.clientY], started: false, boxes: null, all: boxes, how: handle || "move", raw };
  if (!handle) selected = box === undefined ? -1 : Number(box);
  if (selected < 0) {
    drag.how = "se";
    drag.from = [x, y, x, y].map((value, i) => within(value, 0, i % 2 ? current.height : current.width));
  } else drag.from = boxes[selected].xyxy;
  canvas.setPointerCapture(event.pointerId);
  draw();
});

canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const way = Math.hypot(event.clientX - drag.screen[0], event.clientY - drag.screen[1]);
  if (!drag.started && way < CLICK) return;
  if (!drag.started) {
    drag.started = true;
    if (selected < 0) selected = drag.all.push({ class_id: pen }) - 1;
  }
  const [x, y] = place(event);
  const box = { ...drag.all[selected], confidence: null };
  box.xyxy = moved(drag.from, drag.how, x - drag.x, y - drag.y);
  drag.boxes = drag.all.map((one, index) => (index === selected ? box : one));
  draw();
});

function drop() {
  if (!drag) return;
  const { started, boxes, raw, all } = drag;
  drag = null;
  if (started) {
    const [left, top, right, bottom] = boxes[selected].xyxy;
    if (right - left >= SMALLEST && bottom - top >= SMALLEST) return setBoxes(boxes);
    selected = -1;
  } else if (raw !== undefined) {
    selected = all.length;
    return setBoxes([...all, { ...current.raw[Number(raw)] }]);
  }
  draw();
}

canvas.addEventListener("pointerup", drop);
canvas.addEventListener("pointercancel", () => { drag = null; if (current) draw(); });

function deleteBox() {
  const boxes = boxesOf(current);
  if (!boxes || !boxes[selected]) return say("Click a box first.");
  const left = boxes.filter((_, index) => index !== selected);
  selected = -1;
  setBoxes(left);
}

$("class").addEventListener("change", (event) => {
  pen = Number(event.target.value);
  const boxes = current && boxesOf(current);
  if (boxes && boxes[selected])
    setBoxes(boxes.map((box, index) => (index === selected ? { ...box, class_id: pen, confidence: null } : box)));
  event.target.blur();
});

// --- keys ---------------------------------------------------------------------------------------

const KEYS = {
  a: accept, r: reject, e: acceptEmpty, x: deleteBox, Delete: deleteBox, Backspace: deleteBox,
  j: () => step(1), ArrowRight: () => step(1), ArrowDown: () => step(1),
  k: () => step(-1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
  b: () => canvas.classList.toggle("hide-boxes"),
  Escape: () => { selected = -1; draw(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  if (/^[0-5]$/.test(event.key)) choose(Number(event.key));
  else if (event.key === "u") undo();
  else if (event.key === "s") { if (!$("save").disabled) save(); }
  else if (KEYS[event.key] && current && !drag) KEYS[event.key]();
  else return;
  event.preventDefault();
});

for (const [id, act] of [["accept", accept], ["reject", reject], ["empty", acceptEmpty], ["undo", undo], ["save", save]])
  $(id).addEventListener("click", (event) => { act(); event.currentTarget.blur(); });

window.addEventListener("resize", () => { if (current) draw(); });

data.classes.forEach((name, index) => $("class").append(make("option", { value: String(index), textContent: name })));
FILTERS.forEach(([name, test], index) => {
  const button = make("button", { type: "button", textContent: name, title: `key ${index}` });
  if (index < FILTERS.length - 1)
    button.append(make("small", { textContent: String(data.pictures.filter(test).length) }));
  button.addEventListener("click", () => { choose(index); button.blur(); });
  $("kinds").append(button);
});
$("note").hidden = !data.note;
$("note").textContent = data.note;
load();
choose(0);
showProgress();
