/** What is shown: a head of a part, and the query and key that are pointed at or have the focus (-1: none). */
const shown = { part: 0, layer: 0, head: 0, query: -1, key: -1 };
const LEAST = 0.01; // the lightest line that is drawn
const DENSE = 26; // tokens beyond which a small map has no pixel for each, and the matrix takes all the width
const LABELLED = 11; // pixels of a cell of the matrix, from which on its words fit beside it

const parts = data.parts.map((part) => ({ ...part, weights: unpack(part.weights) }));
let part, cells, queryItems, keyItems;

function unpack(base64) {
  const bytes = atob(base64);
  const weights = new Float32Array(bytes.length / 2);
  for (let i = 0; i < weights.length; i++) {
    weights[i] = (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) / 65535;
  }
  return weights;
}

/** The weights of a head, query by query. */
function weightsOf(layer, head) {
  const [, heads, queries, keys] = part.shape;
  const begin = (layer * heads + head) * queries * keys;
  return part.weights.subarray(begin, begin + queries * keys);
}

/** The square root lets small weights be seen. */
const shade = (weight) => Math.sqrt(weight);
const colour = () => getComputedStyle(byId("grid")).color.match(/\d+/g).map(Number);

/** A head's map, a pixel for each weight. */
function paintMap(canvas, layer, head, [red, green, blue]) {
  const [, , queries, keys] = part.shape;
  canvas.width = keys;
  canvas.height = queries;
  const image = new ImageData(keys, queries);
  let at = 0;
  for (const weight of weightsOf(layer, head)) {
    image.data[at++] = red;
    image.data[at++] = green;
    image.data[at++] = blue;
    image.data[at++] = 255 * shade(weight);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function choosePart(index) {
  shown.part = index;
  part = parts[index];
  const [layers, heads] = part.shape;
  shown.layer = Math.min(shown.layer, layers - 1);
  shown.head = Math.min(shown.head, heads - 1);
  [...byId("parts").children].forEach((button, i) => {
    button.setAttribute("aria-checked", i === index);
    button.tabIndex = i === index ? 0 : -1;
  });
  drawGrid(layers, heads);
  queryItems = listWords(byId("queries"), part.queries, "query");
  keyItems = listWords(byId("keys"), part.keys, "key");
  drawMatrix();
}

function drawGrid(layers, heads) {
  const grid = byId("grid");
  const numbers = Array.from({ length: heads }, (_, head) => make("span", { role: "columnheader" }, `${head}`));
  grid.style.gridTemplateColumns = `max-content repeat(${heads}, minmax(0, 2.6rem))`;
  grid.replaceChildren(make("div", { role: "row" }, make("span", {}), ...numbers));
  document.body.classList.toggle("dense", Math.max(...part.shape.slice(2)) > DENSE);
  cells = [];
  for (let layer = 0; layer < layers; layer++) {
    const row = Array.from({ length: heads }, (_, head) => {
      const label = `layer ${layer}, head ${head}`;
      const cell = make("button", { type: "button", role: "gridcell", title: label, "aria-label": label }, make("canvas"));
      cell.onfocus = cell.onclick = () => chooseHead(layer, head);
      return cell;
    });
    cells.push(...row);
    grid.append(make("div", { role: "row" }, make("span", { role: "rowheader" }, `${layer}`), ...row));
  }
  rove(grid, cells, heads);
  paintGrid();
}

function paintGrid() {
  const heads = part.shape[1];
  const ink = colour();
  cells.forEach((cell, i) => paintMap(cell.firstChild, Math.floor(i / heads), i % heads, ink));
}

function chooseHead(layer, head) {
  Object.assign(shown, { layer, head });
  const index = layer * part.shape[1] + head;
  cells.forEach((cell, i) => {
    cell.setAttribute("aria-selected", i === index);
    cell.tabIndex = i === index ? 0 : -1;
  });
  byId("head").textContent = `Layer ${layer}, head ${head}`;
  const { entropy, distance, previous_token: previous, induction } = part.summaries;
  const digits = (numbers) => numbers?.[layer][head]?.toFixed(3) ?? "none";
  byId("summary").textContent = entropy
    ? `Entropy ${digits(entropy)} nats · mean distance ${digits(distance)} tokens · weight on the previous token ` +
      `${digits(previous)}, on what came after earlier occurrences ${digits(induction)}`
    : "From each token of the target to those of the source";
  paintHead();
  setHash(part.name, layer, head);
}

/** A column of words, each with the weight from or to the chosen one. */
function listWords(list, pieces, role) {
  const items = pieces.map((piece, index) => {
    const button = make("button", { type: "button", title: piece.whole ?? "" }, word(piece));
    button.onfocus = button.onpointerenter = () => point({ query: -1, key: -1, [role]: index });
    button.onblur = button.onpointerleave = unpoint;
    return button;
  });
  list.replaceChildren(...items.map((item) => make("li", {}, item, make("span", { className: "number" }))));
  rove(list, items, 1);
  return items;
}

function point(place) {
  Object.assign(shown, place);
  paintHead();
}

/** What is no longer pointed at gives way to what has the focus. */
function unpoint() {
  const [query, key] = [queryItems, keyItems].map((items) => items.indexOf(document.activeElement));
  point({ query, key });
}

function paintHead() {
  const weights = weightsOf(shown.layer, shown.head);
  paintWords(weights);
  paintLines(weights);
  paintMatrix();
  byId("readout").replaceChildren(...readout(weights));
}

const isPointed = (query, key) => [-1, query].includes(shown.query) && [-1, key].includes(shown.key);

function paintWords(weights) {
  const keys = keyItems.length;
  const mark = (item, chosen, weight) => {
    item.classList.toggle("chosen", chosen);
    deepen(item, shade(weight ?? 0));
    item.nextSibling.textContent = weight === undefined ? "" : weight.toFixed(3);
  };
  const { query, key } = shown;
  queryItems.forEach((item, q) => mark(item, q === query, key >= 0 && isPointed(q, key) ? weights[q * keys + key] : undefined));
  keyItems.forEach((item, k) => mark(item, k === key, query >= 0 && isPointed(query, k) ? weights[query * keys + k] : undefined));
}

/** A canvas cleared to the size that it has on the screen. */
function cleared(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  return [pen, width, height];
}

function paintLines(weights) {
  const [pen, width] = cleared(byId("lines"));
  const middle = (item) => item.parentNode.offsetTop + item.parentNode.offsetHeight / 2;
  const [left, right] = [queryItems.map(middle), keyItems.map(middle)];
  pen.strokeStyle = `rgb(${colour()})`;
  pen.lineWidth = 2;
  weights.forEach((weight, i) => {
    const [query, key] = [Math.floor(i / right.length), i % right.length];
    if (weight < LEAST || !isPointed(query, key)) return;
    pen.globalAlpha = weight;
    pen.beginPath();
    pen.moveTo(0, left[query]);
    pen.bezierCurveTo(width / 2, left[query], width / 2, right[key], width, right[key]);
    pen.stroke();
  });
}

function readout(weights) {
  const { query, key } = shown;
  const keys = part.keys.length;
  if (query < 0 && key < 0) return ["Point at a word or a square, or reach it with Tab and the arrow keys, for its numbers."];
  if (query >= 0 && key >= 0) {
    const weight = make("b", {}, weights[query * keys + key].toFixed(3));
    return ["From ", word(part.queries[query]), ` (${query}) to `, word(part.keys[key]), ` (${key}): `, weight];
  }
  const [pieces, others] = query >= 0 ? [part.queries, part.keys] : [part.keys, part.queries];
  const along = others.map((_, i) => (query >= 0 ? weights[query * keys + i] : weights[i * keys + key]));
  const best = along.map((_, i) => i).sort((a, b) => along[b] - along[a]).slice(0, 3);
  const said = best.flatMap((i, n) => [n ? ", " : "", word(others[i]), " ", make("b", {}, along[i].toFixed(3))]);
  const index = Math.max(query, key);
  return [query >= 0 ? "From " : "To ", word(pieces[index]), ` (${index})`, query >= 0 ? " to " : " from ", ...said];
}

function drawMatrix() {
  const [, , queries, keys] = part.shape;
  const matrix = byId("matrix");
  const labels = (pieces, axis) => pieces.map((piece, i) => {
    const label = make("span", { className: axis, "aria-hidden": "true" }, word(piece));
    label.style.gridArea = axis === "row" ? `${i + 2} / 1` : `1 / ${i + 2}`;
    return label;
  });
  const map = make("canvas", { id: "map" });
  map.style.gridArea = "2 / 2 / -1 / -1";
  const frame = make("div", { id: "frame" });
  matrix.replaceChildren(...labels(part.keys, "column"), ...labels(part.queries, "row"), map, frame);
  const size = Math.max(2, Math.min(26, Math.floor((byId("square").clientWidth - 80) / keys)));
  matrix.classList.toggle("bare", size < LABELLED);
  matrix.style.gridTemplate = `auto repeat(${queries}, ${size}px) / auto repeat(${keys}, ${size}px)`;
  map.onpointermove = (event) => {
    const [x, y] = [event.offsetX / size, event.offsetY / size].map(Math.floor);
    point({ query: Math.max(0, Math.min(y, queries - 1)), key: Math.max(0, Math.min(x, keys - 1)) });
  };
  map.onpointerleave = matrix.onblur = unpoint;
  matrix.onkeydown = (event) => {
    const index = Math.max(shown.query, 0) * keys + Math.max(shown.key, 0);
    const next = moved(event.key, index, queries * keys, keys);
    if (next === undefined) return;
    event.preventDefault();
    point({ query: Math.floor(next / keys), key: next % keys });
  };
}

function paintMatrix() {
  paintMap(byId("map"), shown.layer, shown.head, colour());
  const { query, key } = shown;
  const frame = byId("frame");
  frame.hidden = query < 0 && key < 0;
  const lines = (n) => (n < 0 ? [2, -1] : [n + 2, n + 3]);
  const [top, bottom] = lines(query);
  const [left, right] = lines(key);
  frame.style.gridArea = `${top} / ${left} / ${bottom} / ${right}`;
}

/** Shows the head that the address names, or else the first. */
function follow() {
  const [name, layer, head] = placeInHash();
  const index = parts.findIndex((candidate) => candidate.name === name);
  if (part === undefined || (index >= 0 && index !== shown.part)) choosePart(Math.max(index, 0));
  const within = (text, count) => (/^\d+$/.test(text) && Number(text) < count ? Number(text) : 0);
  chooseHead(within(layer, part.shape[0]), within(head, part.shape[1]));
}

const chooser = byId("parts");
chooser.hidden = parts.length < 2;
chooser.append(...parts.map(({ name }, index) => {
  const button = make("button", { type: "button", role: "radio", "aria-checked": "false" }, name);
  button.onclick = button.onfocus = () => {
    if (index === shown.part) return;
    choosePart(index);
    chooseHead(shown.layer, shown.head);
  };
  return button;
}));
rove(chooser, [...chooser.children], parts.length);
byId("legend").append("Weight ", ...legend([0.01, 0.1, 0.25, 0.5, 1], shade));
begin(() => {
  paintGrid();
  paintHead();
});
follow();
addEventListener("hashchange", follow);
new ResizeObserver(() => {
  drawMatrix();
  paintHead();
}).observe(byId("square"));
