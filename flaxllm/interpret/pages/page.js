"use strict";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

/** An element with properties, attributes (those with a hyphen, and role) and children, which as strings are only text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const SIGNS = new Map([[" ", "·"], ["\u00a0", "·"], ["\n", "↵"], ["\r", "↵"], ["\t", "⇥"]]);

/** The character that a token has some bytes of, as far as its neighbours tell. */
const character = (piece) => (piece.whole && piece.whole !== piece.text ? piece.whole.trim() : "");

/** A token as it reads, isolated in its own direction; the signs for its spaces are no part of its text. */
function word(piece) {
  const spaces = piece.whole ? /^( )/ : /([ \u00a0\n\r\t])/; // those between bytes in hexadecimal are none of the text
  const parts = piece.text.split(spaces).filter(Boolean);
  const sign = (space) => make("span", { className: "sign", "data-sign": SIGNS.get(space) }, space);
  const shown = parts.map((part) => (SIGNS.has(part) ? sign(part) : part));
  const element = make("bdi", { className: "word" }, ...shown);
  if (!piece.text) element.dataset.sign = "∅";
  if (piece.whole) Object.assign(element.dataset, { whole: character(piece), joined: piece.joined });
  return element;
}

/** What a token is called in a sentence. */
function named(piece) {
  if (character(piece)) return `${piece.text.trim()} in ${character(piece)}`;
  return piece.text.trim() || JSON.stringify(piece.text);
}

/** The place that an arrow key leads to from `index` among `count` in rows of `columns`; undefined for other keys. */
function moved(key, index, count, columns) {
  const column = index % columns;
  const steps = {
    ArrowRight: column < columns - 1 ? 1 : 0,
    ArrowLeft: column > 0 ? -1 : 0,
    ArrowDown: index + columns < count ? columns : 0,
    ArrowUp: index >= columns ? -columns : 0,
    Home: -column,
    End: columns - 1 - column,
  };
  return key in steps ? index + steps[key] : undefined;
}

/** Lets arrow keys move the focus over `items`, of which one at a time is reached by Tab. */
function rove(container, items, columns) {
  items.forEach((item, index) => (item.tabIndex = index ? -1 : 0));
  container.onfocusin = (event) => {
    if (items.includes(event.target)) for (const item of items) item.tabIndex = item === event.target ? 0 : -1;
  };
  container.onkeydown = (event) => {
    const next = moved(event.key, items.indexOf(document.activeElement), items.length, columns);
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    items[next].focus();
  };
}

/** The place in the address, such as that of #decoder-3-5. */
const placeInHash = () => location.hash.slice(1).split("-");
const setHash = (...place) => history.replaceState(null, "", `#${place.join("-")}`);

/** Gives an element the depth of a number from 0 to 1, and letters that can be read on it. */
function deepen(element, depth) {
  element.style.setProperty("--weight", `${100 * depth}%`);
  element.classList.toggle("deep", depth > 0.6);
}

/** Patches that are as deep as these numbers are in the page. */
function legend(numbers, depth) {
  return numbers.flatMap((number) => {
    const patch = make("i", { className: "patch" });
    deepen(patch, depth(number));
    return [make("span", {}, patch, ` ${number}`), " "];
  });
}

/** Fills the head of the page, and calls `repaint` when its colours have changed. */
function begin(repaint) {
  byId("model").textContent = data.model;
  for (const [name, text] of Object.entries(data.texts)) {
    byId("texts").append(make("dt", {}, name), make("dd", { dir: "auto" }, text));
  }
  const root = document.documentElement.style;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.colorScheme ? root.colorScheme === "dark" : system.matches);
  const paint = (scheme) => {
    root.colorScheme = scheme;
    repaint();
  };
  byId("theme").onclick = () => paint(isDark() ? "light" : "dark");
  system.addEventListener("change", () => paint(""));
  let before = "";
  addEventListener("beforeprint", () => {
    before = root.colorScheme;
    paint("light");
  });
  addEventListener("afterprint", () => paint(before));
}
