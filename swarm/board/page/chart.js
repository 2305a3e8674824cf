// A line chart with an optional band, drawn with the DOM: axes, a legend that reads out the round under the pointer
// or the slider, and the same numbers as a table.

import { el, setText, svg } from "./dom.js";
import { count, decimal } from "./format.js";

const HEIGHT = 260;
const MARGIN = { top: 12, right: 14, bottom: 26, left: 46 };

/** Round steps (1, 2, 5 times a power of ten) from `low` to at least `high`. */
function ticks(low, high, about) {
  const raw = (high - low || 1) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); found.length < 50; k++) {
    found.push(Number((k * step).toPrecision(12)));
    if (k * step >= high - 1e-9) break;
  }
  return found;
}

export class Chart {
  /** `label` says in words what is drawn. */
  constructor(label) {
    this.data = { xs: [], lines: [], band: null };
    this.at = -1;
    this.svg = svg("svg", { class: "plot", "aria-hidden": "true", height: HEIGHT });
    this.box = el(
      "div",
      {
        class: "plot-box",
        pointermove: (event) => this.#point(event),
        pointerdown: (event) => this.#point(event),
      },
      this.svg,
    );
    this.slider = el("input", {
      type: "range",
      class: "scrub",
      min: 0,
      max: 0,
      value: 0,
      "aria-label": `${label}: round`,
      input: () => this.#choose(Number(this.slider.value)),
    });
    this.legend = el("ul", { class: "legend" });
    this.table = el("table", { class: "numbers" });
    this.details = el(
      "details",
      { class: "as-table", toggle: () => this.#fillTable() },
      el("summary", {}, "These numbers as a table"),
      el(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": `${label}, as a table` },
        this.table,
      ),
    );
    this.message = el("p", { class: "plot-empty", hidden: true });
    this.box.append(this.message);
    this.node = el(
      "div",
      { class: "chart", role: "group", "aria-label": label },
      this.legend,
      this.box,
      this.slider,
      this.details,
    );
    new ResizeObserver(() => this.#draw()).observe(this.box);
  }

  /** What stands where there is nothing to draw. */
  say(words) {
    setText(this.message, words);
  }

  /**
   * `xs`: rounds, ascending. `lines`: `{name, kind, values}` with a value or null for each x. `band`:
   * `{name, low, high}` or null. Values are what the axis shows.
   */
  show(data) {
    const text = JSON.stringify(data);
    if (text === this.text) return;
    this.text = text;
    const atEnd = this.at < 0 || this.at >= this.data.xs.length - 1;
    this.data = data;
    const last = data.xs.length - 1;
    this.slider.max = String(Math.max(0, last));
    this.slider.disabled = last < 0;
    this.message.hidden = last >= 0;
    this.legend.classList.toggle("none", last < 0);
    this.round = el("li", { class: "at" });
    this.values = [...data.lines, ...(data.band ? [{ name: data.band.name, kind: "band" }] : [])].map(
      ({ name, kind }) => ({ name, kind, node: el("span", { class: `value ${kind}-value` }) }),
    );
    this.legend.replaceChildren(
      this.round,
      ...this.values.map(({ name, kind, node }) =>
        el("li", {}, el("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), el("bdi", {}, name), node),
      ),
    );
    this.#draw();
    this.#choose(atEnd ? last : this.at);
    this.#fillTable();
  }

  #scales() {
    const { xs, lines, band } = this.data;
    const values = lines.flatMap((line) => line.values).concat(band ? [...band.low, ...band.high] : []);
    const known = values.filter((value) => value !== null);
    const yTicks = ticks(Math.min(0, ...known), Math.max(0.001, ...known), 5);
    const [low, high] = [yTicks[0], yTicks[yTicks.length - 1]];
    const [first, last] = [xs[0], xs[xs.length - 1]];
    const width = this.width - MARGIN.left - MARGIN.right;
    const height = HEIGHT - MARGIN.top - MARGIN.bottom;
    return {
      yTicks,
      x: (round) => MARGIN.left + (first === last ? width / 2 : (width * (round - first)) / (last - first)),
      y: (value) => MARGIN.top + height * (1 - (value - low) / (high - low || 1)),
    };
  }

  #draw() {
    this.width = this.box.clientWidth;
    const { xs, lines, band } = this.data;
    if (!xs.length || !this.width) return this.svg.replaceChildren();
    const { x, y, yTicks } = (this.scales = this.#scales());
    const parts = [];
    const text = (className, px, py, words) => svg("text", { class: className, x: px, y: py }, words);
    const places =
      yTicks[1] - yTicks[0] >= 1 ? 0 : yTicks[1] - yTicks[0] >= 0.1 ? 1 : yTicks[1] - yTicks[0] >= 0.01 ? 2 : 3;
    for (const value of yTicks) {
      parts.push(
        svg("path", {
          class: value === 0 ? "axis" : "grid",
          d: `M${MARGIN.left} ${y(value)}H${this.width - MARGIN.right}`,
        }),
      );
      parts.push(text("tick y", MARGIN.left - 8, y(value) + 4, decimal(value, places)));
    }
    const first = xs[0];
    const last = xs[xs.length - 1];
    const rounds =
      first === last
        ? [first]
        : ticks(first, last, Math.max(2, this.width / 110)).filter((t) => t <= last && Number.isInteger(t));
    for (const round of rounds) parts.push(text("tick x", x(round), HEIGHT - 8, count(round)));
    if (band) {
      const up = xs.map((round, k) => `${x(round)} ${y(band.high[k])}`);
      const down = xs.map((round, k) => `${x(round)} ${y(band.low[k])}`).reverse();
      parts.push(svg("path", { class: "band", d: `M${up.join("L")}L${down.join("L")}Z` }));
    }
    for (const line of lines) {
      let path = "";
      let pen = "M";
      line.values.forEach((value, k) => {
        if (value === null) return void (pen = "M");
        const point = `${x(xs[k]).toFixed(1)} ${y(value).toFixed(1)}`;
        path += `${pen}${point}${pen === "M" ? `L${point}` : ""}`;
        pen = "L";
      });
      parts.push(svg("path", { class: `line ${line.kind}`, d: path }));
    }
    this.cursor = svg("path", { class: "cursor" });
    this.dots = lines.map((line) => svg("circle", { class: `dot ${line.kind}`, r: 3.5, visibility: "hidden" }));
    this.svg.replaceChildren(...parts, this.cursor, ...this.dots);
    this.svg.setAttribute("width", this.width);
    this.#choose(this.at);
  }

  #point(event) {
    const { xs } = this.data;
    if (!xs.length || !this.scales) return;
    const px = event.clientX - this.box.getBoundingClientRect().left;
    let best = 0;
    xs.forEach((round, k) => {
      if (Math.abs(this.scales.x(round) - px) < Math.abs(this.scales.x(xs[best]) - px)) best = k;
    });
    this.#choose(best);
  }

  #choose(k) {
    const { xs, lines, band } = this.data;
    this.at = Math.min(k, xs.length - 1);
    if (this.at < 0 || !this.scales || !this.cursor) return;
    const { x, y } = this.scales;
    const px = x(xs[this.at]);
    this.cursor.setAttribute("d", `M${px} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}`);
    lines.forEach((line, n) => {
      const value = line.values[this.at];
      this.dots[n].setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value === null) return;
      this.dots[n].setAttribute("cx", px);
      this.dots[n].setAttribute("cy", y(value));
    });
    const texts = lines.map(({ values }) => (values[this.at] === null ? "–" : decimal(values[this.at], 3)));
    if (band) texts.push(`${decimal(band.low[this.at], 3)}–${decimal(band.high[this.at], 3)}`);
    setText(this.round, `Round ${count(xs[this.at])}`);
    this.values.forEach(({ node }, n) => setText(node, texts[n]));
    this.slider.value = String(this.at);
    const words = this.values.map(({ name }, n) => `${name} ${texts[n]}`);
    this.slider.setAttribute("aria-valuetext", `Round ${count(xs[this.at])}: ${words.join(", ")}`);
  }

  #fillTable() {
    if (!this.details.open) return;
    const { xs, lines, band } = this.data;
    const heads = ["Round", ...lines.map((line) => line.name), ...(band ? [band.name] : [])];
    this.table.replaceChildren(
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, el("bdi", {}, head))))),
      el(
        "tbody",
        {},
        ...xs
          .map((round, k) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, count(round)),
              ...lines.map((line) => el("td", {}, line.values[k] === null ? "–" : decimal(line.values[k], 3))),
              band ? el("td", {}, `${decimal(band.low[k], 3)}–${decimal(band.high[k], 3)}`) : null,
            ),
          )
          .reverse(),
      ),
    );
  }
}
