"use strict";
// Connects the page's choices to plotly, and its tables to the clipboard. The content is made by report/page.py.

const content = JSON.parse(document.getElementById("content").textContent);
const source = document.getElementById("source");
const NARROW = 600; // pixels; a narrower plot has smaller margins

for (const element of document.querySelectorAll(".tools")) element.hidden = false;

/* Where a figure comes from */

function showSource(lines) {
  source.querySelector("p").textContent = lines;
  source.hidden = false;
}

function hideSource() {
  source.hidden = true;
}

function showSourceOf(event) {
  const cell = event.target.closest("td[title], th[title]");
  if (cell) showSource(cell.title);
}

document.addEventListener("click", showSourceOf);
document.addEventListener("focusin", showSourceOf);
source.querySelector("[data-close]").addEventListener("click", hideSource);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideSource(); });

/* Plots */

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// the text of a mark, in short lines where the window is narrow
function hover(lines, width) {
  const longest = width < NARROW ? 26 : 90; // letters
  const parts = new RegExp(`.{1,${longest}}(?=[ /]|$)|.{1,${longest}}`, "g");
  return lines.flatMap((line) => line.match(parts)).map((part) => escaped(part.trim())).join("<br>");
}

function traceOf(line, figure, off, width) {
  const { color, mark, dash } = content.styles[line.name];
  const cells = line.cells.map((number) => content.cells[number]);
  const error = { type: "data", symmetric: false, thickness: 1, width: 2, color,
    array: cells.map((cell) => cell.above), arrayminus: cells.map((cell) => cell.below) };
  const values = cells.map((cell) => cell.y);
  const across = figure.rows
    ? { x: values, y: line.x, error_x: error, mode: "markers" }
    : { x: line.x, y: values, ...(line.only !== "lines" && { error_y: error }), mode: line.only || "lines+markers" };
  const drawn = {
    ...(across.mode.includes("lines") && { line: { color, dash, width: 1.5, shape: line.only ? "hv" : "linear" } }),
    ...(across.mode.includes("markers") && { marker: { color, symbol: mark, size: 8 } }),
  };
  return { ...across, ...drawn, type: "scatter", name: escaped(line.name), visible: !off.has(line.name),
    hoverinfo: "text", text: cells.map((cell) => hover(cell.text, width)) };
}

function layoutOf(figure, width) {
  const axis = { gridcolor: "#888888", zeroline: false, automargin: true };
  const values = { ...axis, title: { text: "top-1 accuracy (%)" } };
  const named = { ...axis, title: { text: escaped(figure.x.title) }, type: figure.x.log ? "log" : "linear",
    ...(figure.x.reversed ? { autorange: "reversed", dtick: 1 } : { autorange: true }) };
  const rows = figure.rows && { ...axis, type: "category", categoryorder: "array", categoryarray: figure.rows };
  const level = figure.level === undefined || figure.level === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1,
    y0: content.cells[figure.level].y, y1: content.cells[figure.level].y,
    line: { color: "#777777", width: 1, dash: "dot" } }];
  return { xaxis: rows ? values : named, yaxis: rows || values, shapes: level, showlegend: false, hovermode: "closest",
    margin: width < NARROW ? { l: 45, r: 8, t: 10, b: 45 } : { l: 60, r: 20, t: 10, b: 50 },
    height: rows ? 120 + 22 * figure.rows.length : 460, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { size: 12 }, hoverlabel: { align: "left", font: { size: 12 } } };
}

class Plot {
  constructor(article) {
    this.drawing = article.querySelector(".drawing");
    this.lines = article.querySelector(".lines div");
    this.selects = [...article.querySelectorAll("select")];
    this.figures = content.figures[article.dataset.plot];
    this.switched = new Map(); // line: whether a person has switched it on or off
    this.at = [0, -1]; // line and mark that the arrow keys have reached
    for (const select of this.selects) select.addEventListener("change", () => this.choose());
    for (const button of article.querySelectorAll("[data-lines]")) {
      button.addEventListener("click", () => this.switchAll(button.dataset.lines === "all"));
    }
    this.drawing.addEventListener("keydown", (event) => this.walk(event));
    this.listLines(); // the rest is drawn when it comes into view
  }

  get figure() {
    const chosen = this.selects.map((select) => select.value);
    return this.figures.find((figure) => figure.options.every((option, place) => option === chosen[place]))
      || { lines: [], x: { title: "not measured" }, off: [] };
  }

  drawFirst() {
    if (this.drawn) return;
    this.drawn = true;
    this.draw();
    this.drawing.on("plotly_click", ({ points }) => this.read(points[0].curveNumber, points[0].pointNumber));
  }

  choose() {
    this.drawFirst();
    this.draw();
  }

  draw() {
    this.at = [0, -1];
    this.listLines();
    this.drawing.style.height = "auto";
    const off = this.off();
    const figure = this.figure;
    const width = this.drawing.clientWidth;
    Plotly.react(this.drawing, figure.lines.map((line) => traceOf(line, figure, off, width)), layoutOf(figure, width), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] });
  }

  off() {
    const names = this.figure.lines.map((line) => line.name);
    return new Set(names.filter((name) => !(this.switched.get(name) ?? !this.figure.off.includes(name))));
  }

  listLines() {
    const off = this.off();
    const labels = [...new Set(this.figure.lines.map((line) => line.name))].map((name) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !off.has(name), value: name });
      const sign = Object.assign(document.createElement("span"), { textContent: ` ${content.styles[name].sign} ` });
      sign.style.color = content.styles[name].color;
      box.addEventListener("change", () => this.switchLine(name, box.checked));
      label.append(box, sign, name);
      return label;
    });
    this.lines.replaceChildren(...labels);
  }

  switchLine(name, on) {
    this.switched.set(name, on);
    this.drawFirst();
    const off = this.off();
    Plotly.restyle(this.drawing, { visible: this.figure.lines.map((line) => !off.has(line.name)) });
  }

  switchAll(on) {
    for (const line of this.figure.lines) this.switched.set(line.name, on);
    this.choose();
  }

  read(line, mark) {
    this.at = [line, mark];
    showSource(content.cells[this.figure.lines[line].cells[mark]].text.join("\n"));
  }

  walk(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const off = this.off();
    const shown = this.figure.lines.map((_, number) => number).filter((number) => !off.has(this.figure.lines[number].name));
    if (!step || !shown.length) return;
    event.preventDefault();
    const place = Math.max(0, shown.indexOf(this.at[0]));
    const line = shown[(place + step[0] + shown.length) % shown.length];
    const marks = this.figure.lines[line].cells.length;
    const mark = Math.min(Math.max(this.at[1] + step[1], 0), marks - 1);
    Plotly.Fx.hover(this.drawing, [{ curveNumber: line, pointNumber: mark }]);
    this.read(line, mark);
  }

  fit(width) {
    this.drawFirst();
    Plotly.relayout(this.drawing, width ? { width, autosize: false } : { width: null, autosize: true });
  }
}

const PRINTED = 900; // pixels: the width of a printed plot
const plots = [...document.querySelectorAll("[data-plot]")].map((article) => new Plot(article));
const inView = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) plots.find((plot) => plot.drawing === entry.target).drawFirst();
}, { rootMargin: "50%" });
plots.forEach((plot) => inView.observe(plot.drawing));
window.addEventListener("beforeprint", () => plots.forEach((plot) => plot.fit(PRINTED)));
window.addEventListener("afterprint", () => plots.forEach((plot) => plot.fit(null)));

/* Pictures */

const picture = document.getElementById("picture");

function fill(select, options, wanted) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  const kept = options.some(([value]) => String(value) === String(wanted));
  if (kept) select.value = wanted;
}

function showPictures(changed) {
  const choose = (name) => picture.querySelector(`[data-choose=${name}]`);
  const set = content.pictures[choose("set").value];
  if (changed === "set") fill(choose("image"), set.images.map((image, number) => [number, image.title]), 0);
  const image = set.images[choose("image").value];
  const bits = Object.keys(image.bits).sort().reverse();
  if (changed === "set" || changed === "image") fill(choose("bit"), bits.map((bit) => [bit, bit]), image.bit);
  const bit = choose("bit").value;
  const { strip, versions } = image.bits[bit];
  const names = versions.slice(2).map((version) => version.name);
  fill(choose("repair"), names.map((name) => [name, name]), choose("repair").value || "colors");
  const repair = versions.findIndex((version) => version.name === choose("repair").value);
  const shown = { clean: [0], faulty: [1], repaired: [repair], lost: [0, 1], left: [0, repair] };
  for (const [name, numbers] of Object.entries(shown)) drawVersion(name, numbers, strip, versions, image.label, bit);
  picture.querySelector("[data-show=session]").textContent = `The net: ${set.session}. Bits read as in run 0 of its sweep.`;
}

// one version, or the difference of two: they lie in one strip, from top to bottom
function drawVersion(name, numbers, strip, versions, label, bit) {
  const figure = picture.querySelector(`[data-version=${name}]`);
  const pixels = figure.querySelector(".pixels");
  const place = (number) => `0 ${100 * number / (versions.length - 1)}%`;
  pixels.style.backgroundImage = numbers.map(() => `url(${strip})`).join(", ");
  pixels.style.backgroundPosition = numbers.map(place).join(", ");
  pixels.style.backgroundSize = `100% ${100 * versions.length}%`;
  pixels.style.filter = numbers.length > 1 ? `brightness(${255 / 2 ** bit})` : "";
  const classes = numbers.length > 1 ? [] : versions[numbers[0]].classes;
  figure.querySelector("ol").replaceChildren(...classes.map(([text, logit]) => Object.assign(
    document.createElement("li"), { textContent: `${text} ${logit.toFixed(2)}${text === label ? " ✓" : ""}` })));
}

if (picture) {
  for (const select of picture.querySelectorAll("select")) {
    select.addEventListener("change", () => showPictures(select.dataset.choose));
  }
  showPictures("set");
}

/* Copies of tables */

const latex = (text) => text.replace(/[\\&%$#_{}~^]/g, (sign) => ({ "\\": "\\textbackslash{}", "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}" }[sign] || `\\${sign}`)).replace(/±/g, "$\\pm$").replace(/σ/g, "$\\sigma$")
  .replace(/×/g, "$\\times$").replace(/–/g, "--").replace(/</g, "$<$").replace(/>/g, "$>$");

const WRITERS = {
  csv: (rows) => rows.map((row) => row.map((text) => /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text).join(",")),
  markdown: ([head, ...rows]) => [head, head.map((_, place) => place ? "--:" : "---"), ...rows].map((row, number) =>
    number === 1 ? `|${row.join("|")}|` : `| ${row.map((text) => text.replace(/\|/g, "\\|")).join(" | ")} |`),
  latex: ([head, ...rows]) => [`\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule",
    `${head.map(latex).join(" & ")} \\\\`, "\\midrule", ...rows.map((row) => `${row.map(latex).join(" & ")} \\\\`),
    "\\bottomrule", "\\end{tabular}"],
};

function textOf(table, kind) {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.replace(/\s+/g, " ").trim()));
  return WRITERS[kind](rows).join("\n") + "\n";
}

async function copy(button) {
  const text = textOf(button.closest(".table").querySelector("table"), button.dataset.copy);
  const dialog = document.getElementById("copied");
  dialog.querySelector("textarea").value = text;
  try {
    await navigator.clipboard.writeText(text);
    dialog.querySelector("p").textContent = "Copied:";
  } catch {
    dialog.querySelector("p").textContent = "The browser does not let this page copy. Here is the text:";
  }
  dialog.showModal();
  dialog.querySelector("textarea").select();
}

for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
