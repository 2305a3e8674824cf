// Hexagons: the swarm as a honeycomb, and each peer's mark, drawn from its id.

import { svg } from "./dom.js";

const MOST_CELLS = 91; // five full rings around the middle
const HALF_WIDTH = Math.sqrt(3) / 2;

function corners(x, y, radius) {
  const points = [];
  for (let k = 0; k < 6; k++) {
    const angle = (Math.PI / 3) * k + Math.PI / 6;
    points.push(`${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`);
  }
  return points;
}

/** Centres of hexagons in rings around the middle, nearest first. */
function spiral(n) {
  const steps = [
    [1, 0],
    [0, 1],
    [-1, 1],
    [-1, 0],
    [0, -1],
    [1, -1],
  ];
  const centres = [[0, 0]];
  for (let ring = 1; centres.length < n; ring++) {
    let [q, r] = [0, -ring];
    for (const [dq, dr] of steps) {
      for (let step = 0; step < ring && centres.length < n; step++) {
        centres.push([q, r]);
        [q, r] = [q + dq, r + dr];
      }
    }
  }
  return centres.map(([q, r]) => [2 * HALF_WIDTH * (q + r / 2), 1.5 * r]);
}

/** One cell for each peer alive (or for some of them together), filled where it reported in this round. */
export class Comb {
  constructor() {
    this.root = svg("svg", { class: "comb", "aria-hidden": "true" });
    this.centres = spiral(MOST_CELLS);
    this.cells = [];
  }

  show(alive, reported) {
    const share = Math.max(1, alive / MOST_CELLS);
    const n = Math.min(MOST_CELLS, Math.ceil(alive / share));
    const rings = Math.max(2, Math.ceil((Math.sqrt(9 + 12 * Math.max(0, n - 1)) - 3) / 6)); // 1 + 3r(r + 1) cells
    const half = 1.5 * rings + 1.2;
    this.root.setAttribute("viewBox", `${-1.15 * half} ${-half} ${2.3 * half} ${2 * half}`);
    while (this.cells.length < n) {
      const [x, y] = this.centres[this.cells.length];
      const cell = svg("polygon", { points: corners(x, y, 0.86).join(" ") });
      this.cells.push(cell);
      this.root.append(cell);
    }
    while (this.cells.length > n) this.cells.pop().remove();
    const filled = Math.min(n, Math.round(reported / share));
    this.cells.forEach((cell, k) => {
      const kind = k < filled ? "reported" : "alive";
      if (cell.getAttribute("class") !== kind) cell.setAttribute("class", kind);
    });
  }
}

/** A peer's mark: six wedges, light or dark by its id, in one of twelve hues. Never the only way to tell peers. */
export function mark(peer) {
  let hash = 2166136261; // FNV-1a, spread once more below
  for (let k = 0; k < peer.length; k++) hash = Math.imul(hash ^ peer.charCodeAt(k), 16777619);
  hash = Math.imul(hash ^ (hash >>> 15), 2246822507) >>> 0;
  const points = corners(12, 12, 11);
  const wedge = (k) => `M12 12L${points[k].replace(",", " ")}L${points[(k + 1) % 6].replace(",", " ")}Z`;
  let path = "";
  for (let k = 0; k < 6; k++) if ((hash >>> k) & 1) path += wedge(k);
  return svg(
    "svg",
    { class: `mark hue-${(hash >>> 8) % 12}`, viewBox: "0 0 24 24", "aria-hidden": "true" },
    svg("polygon", { class: "mark-ground", points: points.join(" ") }),
    svg("path", { class: "mark-figure", d: path }),
  );
}
