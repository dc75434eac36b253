const { depths, actual } = data;
const positions = data.read.length;
const pieceOf = (token) => data.vocabulary[token];
const cells = [];

function cell(depth, position) {
  const { tokens, probabilities } = depths[depth];
  const [token, probability] = [tokens[position][0], probabilities[position][0]];
  const isActual = token === actual[position];
  const button = make("button", { type: "button", className: isActual ? "actual" : "" }, word(pieceOf(token)));
  const label = `${depths[depth].name}, position ${position}: ${named(pieceOf(token))} ${probability.toFixed(3)}`;
  button.setAttribute("aria-label", isActual ? `${label}, which ${data.what}` : label);
  deepen(button, probability);
  button.onpointerenter = () => show(depth, position);
  button.onpointerleave = follow;
  button.onfocus = button.onclick = () => {
    setHash(depth, position);
    follow();
  };
  cells.push(button);
  return make("td", { role: "gridcell" }, button);
}

function draw() {
  const heading = (role, ...children) => make("th", { role, scope: role === "rowheader" ? "row" : "col" }, ...children);
  const line = (...children) => make("tr", { role: "row" }, ...children);
  const head = line(heading("columnheader", "after"), ...data.read.map((piece) => heading("columnheader", word(piece))));
  const rows = depths.map(({ tokens }, depth) =>
    line(heading("rowheader", depths[depth].name), ...tokens.map((_, position) => cell(depth, position))));
  const truth = actual.map((token) => make("td", { role: "gridcell" }, ...(token < 0 ? [] : [word(pieceOf(token))])));
  const foot = line(heading("rowheader", data.what), ...truth);
  byId("table").append(make("thead", {}, head), make("tbody", {}, ...rows), make("tfoot", {}, foot));
  rove(byId("table"), cells, positions);
}

/** Shows all that is known of a place. */
function show(depth, position) {
  const { tokens, probabilities, entropy } = depths[depth];
  byId("place").replaceChildren(`${depths[depth].name}, position ${position}: `, word(data.read[position]));
  const truth = actual[position];
  const missing = truth >= 0 && !tokens[position].includes(truth);
  byId("summary").replaceChildren(`Entropy ${entropy[position].toFixed(3)} nats`,
    ...(missing ? [" · ", word(pieceOf(truth)), ` ${data.what}, and is not among these`] : []));
  byId("best").replaceChildren(...tokens[position].map((token, rank) => {
    const probability = probabilities[position][rank];
    const bar = make("i", { className: "bar" });
    bar.style.width = `${100 * probability}%`;
    const said = [word(pieceOf(token)), make("span", { className: "number" }, probability.toFixed(3)), bar];
    return make("li", { className: token === actual[position] ? "actual" : "" }, ...said);
  }));
}

/** Shows the place that the address names, or else the last output. */
function follow() {
  const within = (text, count) => (/^\d+$/.test(text ?? "") && Number(text) < count ? Number(text) : count - 1);
  const [depth, position] = placeInHash();
  const place = [within(depth, depths.length), within(position, positions)];
  const chosen = place[0] * positions + place[1];
  cells.forEach((item, i) => {
    item.tabIndex = i === chosen ? 0 : -1;
    item.parentNode.setAttribute("aria-selected", i === chosen);
  });
  show(...place);
}

byId("how").textContent =
  `A row is a depth, a column a token that was read; in each square is the likeliest token, underlined where it ${data.what}.`;
byId("legend").append("Probability ", ...legend([0.05, 0.25, 0.5, 0.75, 1], (probability) => probability));
draw();
begin(() => {});
follow();
addEventListener("hashchange", follow);
