// The page of all rounds, and the page of one round with its reports.

import { get } from "./api.js";
import { reportList } from "./chain.js";
import { digest, el, setText } from "./dom.js";
import { count, micro, short, when } from "./format.js";
import { Paged } from "./paged.js";

const PAGE = 50;

/** Nobody knows a round's mean before it is over, nor has one without reports any. */
const rewardOf = (round, reward) => (reward === null || !round.reports ? "–" : micro(reward));

function roundRow(round) {
  const number = (key, text) => el("td", { class: "number", "data-field": key, "data-value": round[key] }, text);
  return el(
    "tr",
    { "data-round": round.round },
    el("th", { scope: "row" }, el("a", { href: `#/round/${round.round}` }, count(round.round))),
    el("td", { class: "wide" }, when(round.began_at)),
    number("reports", count(round.reports)),
    el("td", { class: "number wide", "data-field": "late", "data-value": round.late }, count(round.late)),
    number("mean_reward", rewardOf(round, round.mean_reward)),
    number("best_reward", rewardOf(round, round.best_reward)),
    el("td", { class: "wide" }, digest(round.beacon, "Beacon", short)),
  );
}

export class RoundsPage {
  constructor() {
    this.title = "Rounds";
    const head = (title, kind) => el("th", { scope: "col", class: kind }, title);
    const list = el("tbody", {});
    const table = el(
      "table",
      { class: "rounds" },
      el("caption", { class: "unseen" }, "Rounds, newest first"),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head("Round"),
          head("Began", "wide"),
          head("Reports", "number"),
          head("Late", "number wide"),
          head("Mean", "number"),
          head("Best", "number"),
          head("Beacon", "wide"),
        ),
      ),
      list,
    );
    this.list = new Paged({
      list,
      around: table,
      key: (round) => round.round,
      make: roundRow,
      nothing: () => "No round has ended yet.",
      load: async (before) => {
        const page = await get("/rounds", { before, limit: PAGE });
        return { items: page.rounds, next: page.next };
      },
    });
    this.node = el(
      "section",
      { class: "panel", "aria-labelledby": "rounds-title" },
      el("h1", { id: "rounds-title", tabindex: -1 }, "Rounds"),
      el("p", { class: "lead" }, "Rewards are those of the reports that came on time."),
      this.list.node,
    );
  }

  show() {
    return this.refresh();
  }

  refresh() {
    return this.list.refresh();
  }
}

export class RoundPage {
  constructor() {
    this.title = "Round";
    this.names = new Map();
    this.heading = el("h1", { tabindex: -1, id: "round-title" }, "Round");
    this.place = el("div", {});
    this.node = el(
      "section",
      { class: "panel", "aria-labelledby": "round-title" },
      this.heading,
      el("p", { class: "lead" }, el("a", { href: "#/rounds" }, "All rounds")),
      this.place,
    );
  }

  show(text) {
    const round = Math.max(0, Math.trunc(Number(text)) || 0);
    if (round !== this.round) {
      this.round = round;
      setText(this.heading, `Round ${count(round)}`);
      this.title = `Round ${count(round)}`;
      this.list = reportList(`/rounds/${round}/reports`, "No report of this round is on the ledger.", this.names);
      this.place.replaceChildren(this.list.node);
    }
    return this.refresh();
  }

  refresh() {
    return this.list.refresh();
  }
}
