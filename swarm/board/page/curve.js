// The swarm's rewards over time, with the visitor's pinned peers beside them.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { el } from "./dom.js";

const POINTS = 200;
const REPORTS = 500; // of each pinned peer, the newest
const MOST_LINES = 5; // as many as can still be told apart

/** For each of `rounds` the mean reward of the reports since the round before it; null where there is none. */
export function along(rounds, reports) {
  const sums = rounds.map(() => [0, 0]);
  for (const report of reports) {
    if (report.late) continue;
    const k = rounds.findIndex((round) => report.round <= round);
    if (k < 0) continue;
    sums[k][0] += report.reward / 1e6;
    sums[k][1] += 1;
  }
  return sums.map(([sum, n]) => (n ? sum / n : null));
}

export class CurvePanel {
  constructor(app) {
    this.app = app;
    this.chart = new Chart("Rewards over time");
    this.node = el(
      "section",
      { class: "panel curve", "aria-labelledby": "curve-title" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { id: "curve-title" }, "Reward"),
        el("p", { class: "panel-note" }, "mean of a round’s reports; pin peers to see their lines"),
      ),
      this.chart.node,
    );
    app.pins.addEventListener("change", () => this.refresh());
  }

  /** Once a second: the empty state counts down. */
  tick() {
    if (this.isEmpty) this.chart.say(this.app.clock.nothingYet());
  }

  async refresh() {
    const asked = (this.asked = Symbol("newest"));
    const ids = this.app.pins.ids.slice(-MOST_LINES);
    let curve;
    let names;
    let reports;
    try {
      [curve, names, ...reports] = await Promise.all([
        get("/curve", { points: POINTS }),
        ids.length ? get("/peers", { peer: ids }) : { rows: [] },
        ...ids.map((id) =>
          get(`/peers/${encodeURIComponent(id)}/reports`, { limit: REPORTS }).catch(() => ({ reports: [] })),
        ),
      ]);
    } catch {
      return; // what is shown stays; the notice says that the board is away
    }
    if (this.asked !== asked) return;
    const xs = curve.points.map((point) => point.round);
    const name = new Map(names.rows.map((rank) => [rank.peer, rank.name]));
    this.isEmpty = !xs.length;
    this.tick();
    this.chart.show({
      xs,
      lines: [
        { name: "swarm’s mean", kind: "mean", values: curve.points.map((point) => point.mean / 1e6) },
        ...ids.map((id, k) => ({
          name: name.get(id) ?? id,
          kind: `pin-${k + 1}`,
          values: along(xs, reports[k].reports),
        })),
      ],
      band: {
        name: "10–90 %",
        low: curve.points.map((point) => point.low / 1e6),
        high: curve.points.map((point) => point.high / 1e6),
      },
    });
  }
}
