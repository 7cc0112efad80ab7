"use strict";
// Text, tables and charts. Data becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** What of a template's copy is named so by `data-is`. */
const named = (part, name) => part.querySelector(`[data-is="${name}"]`);

const copyOf = (id) =>
  document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Touches the document only for news: a selection of text stays. */
function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** The first `count` children of one kind, made or taken away as needed. */
function children(parent, tag, count) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make(tag));
  return [...parent.children];
}

/** Rows of cells: `{text, note, kind}`, where a note is a quiet second line. */
function fill(body, rows) {
  children(body, "tr", rows.length).forEach((row, at) => {
    children(row, "td", rows[at].length).forEach((cell, place) => {
      const { text, note = "", kind = "" } = rows[at][place];
      if (!cell.firstChild) cell.append(make("span"), make("small"));
      cell.className = kind;
      say(cell.firstChild, text);
      say(cell.lastChild, note);
    });
  });
}

const NONE = "–";

function seconds(value) {
  if (value === null || Number.isNaN(value)) return NONE;
  if (value >= 10) return `${value.toFixed(0)} s`;
  if (value >= 1) return `${value.toFixed(2)} s`;
  return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
}

function amount(value) {
  if (Number.isNaN(value)) return NONE;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

const clock = (epoch) => new Date(epoch * 1000).toLocaleTimeString("en-GB");

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** One path through points, interrupted where a value is null. */
function path(points, x, y) {
  let isDrawing = false;
  return points.map(([at, value]) => {
    const verb = isDrawing ? "L" : "M";
    isDrawing = value !== null;
    return isDrawing ? `${verb}${x(at).toFixed(1)} ${y(value).toFixed(1)}` : "";
  }).join("");
}

/** A line without axes: the way of a number until now. */
function spark(svg, values) {
  const { clientWidth: width, clientHeight: height } = svg;
  const top = Math.max(...values.filter((value) => value !== null), 0) || 1;
  const x = (at) => width - 2 - ((values.length - 1 - at) * width) / Math.max(values.length, 30);
  const y = (value) => height - 2 - (value / top) * (height - 4);
  svg.replaceChildren(shape("path", { d: path([...values.entries()], x, y) }));
}

const PLAIN = { by: (value) => value, bottom: 0, top: 100, levels: [0, 50, 100] };

/** A logarithmic scale for such values: what is twice as much is as far away everywhere. */
function ratios(values) {
  const known = values.filter((value) => value > 0);
  const [least, most] = known.length ? [Math.min(...known), Math.max(...known)] : [0.1, 1];
  const [bottom, top] = [least / 1.5, most * 1.5];
  const decades = [-4, -3, -2, -1, 0, 1, 2, 3].map((power) => 10 ** power);
  const within = (level) => level >= bottom && level <= top;
  const fine = decades.flatMap((level) => [level, 2 * level, 5 * level]).filter(within);
  const by = (value) => Math.log(Math.max(value, bottom)); // what is rounded to 0 has no log
  return { by, bottom, top, levels: fine.length > 6 ? decades.filter(within) : fine };
}

/** Lines over time: `lines` is `[kind, name, [[epoch, value], ...]]`, `goal` a level or null. */
function chart(svg, { lines, goal, scale, unit, label }) {
  const { clientWidth: width, clientHeight: height } = svg;
  const [left, right, above, below] = [46, width - 8, 6, height - 18];
  const times = lines.flatMap(([, , points]) => points.map(([at]) => at));
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const x = (at) => left + ((at - first) / (last - first || 1)) * (right - left);
  const [low, high] = [scale.by(scale.bottom), scale.by(scale.top)];
  const y = (value) => above + ((high - scale.by(value)) / (high - low)) * (below - above);
  const across = (level) => ({ x1: left, x2: right, y1: y(level), y2: y(level) });
  const parts = scale.levels.flatMap((level) => [
    shape("line", across(level)),
    shape("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, unit(level)),
  ]);
  parts.push(
    shape("text", { x: left, y: height - 4 }, clock(first)),
    shape("text", { x: right, y: height - 4, "text-anchor": "end" }, clock(last)),
  );
  if (goal !== null) parts.push(shape("line", { class: "goal", ...across(goal) }));
  for (const [kind, name, points] of lines) {
    parts.push(shape("path", { class: kind, d: path(points, x, y) }));
    for (const [at, value] of points.filter(([, value]) => value !== null)) {
      const dot = shape("circle", { class: kind, cx: x(at), cy: y(value), r: 2 });
      dot.append(shape("title", {}, `${clock(at)} ${name} ${unit(value)}`));
      parts.push(dot);
    }
  }
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...parts);
}
