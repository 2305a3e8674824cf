// One line of the leaderboard. It is made once for a peer and then changed in place.

import { mark } from "./comb.js";
import { arrange, el, peerLink, setField, setText, svg, unseen } from "./dom.js";
import { count, decimal, micro, short } from "./format.js";

const TREND_WIDTH = 112;
const TREND_HEIGHT = 26;

const field = (key, kind = "span") => el(kind, { "data-field": key });

/** A row with `update(rank, pinned)`; `onPin(peer)` when the star is pressed. */
export class RankRow {
  constructor(rank, onPin) {
    this.peer = rank.peer;
    this.shown = "";
    this.star = el(
      "button",
      { type: "button", class: "star", click: () => onPin(rank.peer) },
      svg(
        "svg",
        { viewBox: "0 0 24 24", "aria-hidden": "true" },
        svg("path", { d: "M12 3.2l2.7 5.6 6.1.8-4.5 4.3 1.1 6.1L12 17l-5.4 3 1.1-6.1-4.5-4.3 6.1-.8z" }),
      ),
    );
    this.rank = field("rank");
    this.link = peerLink(rank.peer, rank.name);
    this.link.title = rank.peer;
    this.own = el("span", { class: "tag own", hidden: true }, "yours");
    this.doubt = el(
      "span",
      { class: "tag doubt", hidden: true, title: "Others do not learn from it now" },
      "not used",
    );
    this.trendPath = svg("path", { class: "trend-line" });
    this.trendEnd = svg("circle", { class: "trend-end", r: 2 });
    this.trendWords = unseen("");
    this.ranked = field("ranked_rounds");
    this.rounds = field("rounds");
    this.reward = field("verified_reward", "td");
    this.reward.className = "number strong col-reward";
    this.score = field("score");
    this.bar = el("span", { class: "meter-fill" });
    this.passed = field("audits_passed");
    this.failed = field("audits_failed");
    this.node = el(
      "tr",
      { "data-peer": rank.peer },
      el("td", { class: "col-star" }, this.star),
      el("td", { class: "number col-rank" }, this.rank),
      el(
        "th",
        { scope: "row", class: "col-peer" },
        el(
          "span",
          { class: "peer-cell" },
          mark(rank.peer),
          el(
            "span",
            { class: "peer-text" },
            this.link,
            el("span", { class: "peer-id" }, this.own, this.doubt, short(rank.peer, 8)),
          ),
        ),
      ),
      el(
        "td",
        { class: "col-trend" },
        svg(
          "svg",
          { class: "trend", viewBox: `0 0 ${TREND_WIDTH} ${TREND_HEIGHT}`, "aria-hidden": "true" },
          this.trendPath,
          this.trendEnd,
        ),
        this.trendWords,
      ),
      el("td", { class: "number col-rounds" }, this.ranked, el("span", { class: "muted" }, " / "), this.rounds),
      this.reward,
      el(
        "td",
        { class: "number col-score" },
        this.score,
        el("span", { class: "meter", "aria-hidden": "true" }, this.bar),
      ),
      el(
        "td",
        { class: "number col-audits" },
        el("span", { class: "good" }, "✓\u2009", this.passed),
        unseen(" passed, "),
        el("span", { class: "bad" }, "✗\u2009", this.failed),
        unseen(" failed"),
      ),
    );
  }

  update(rank, pinned) {
    const now = JSON.stringify([rank, pinned]);
    if (now === this.shown) return;
    this.shown = now;
    setField(this.rank, rank.rank ?? "", rank.rank === null ? "–" : count(rank.rank));
    setField(this.ranked, rank.ranked_rounds, count(rank.ranked_rounds));
    setField(this.rounds, rank.rounds, count(rank.rounds));
    setField(this.reward, rank.verified_reward, micro(rank.verified_reward));
    setField(this.score, rank.score, micro(rank.score, 2));
    this.bar.style.transform = `scaleX(${rank.score / 1e6})`;
    setField(this.passed, rank.audits_passed, count(rank.audits_passed));
    setField(this.failed, rank.audits_failed, count(rank.audits_failed));
    this.failed.parentElement.classList.toggle("none", rank.audits_failed === 0);
    this.own.hidden = !rank.own;
    this.node.classList.toggle("yours", rank.own);
    this.doubt.hidden = rank.eligible || rank.rank === null;
    this.star.setAttribute("aria-pressed", String(pinned));
    this.star.setAttribute("aria-label", `Pin ${rank.name}`);
    this.star.title = pinned ? "Unpin" : "Pin to the top";
    this.#drawTrend(rank.trend);
  }

  #drawTrend(trend) {
    const known = trend.filter((reward) => reward !== null);
    const top = Math.max(1, ...known);
    const step = (TREND_WIDTH - 6) / Math.max(1, trend.length - 1);
    const y = (reward) => (TREND_HEIGHT - 3 - ((TREND_HEIGHT - 6) * Math.max(0, reward)) / top).toFixed(1);
    let path = "";
    let pen = "M";
    let last = null;
    trend.forEach((reward, k) => {
      if (reward === null) {
        pen = "M";
        return;
      }
      const x = (3 + k * step).toFixed(1);
      // A point without neighbours is a line to itself: with round ends it is a dot.
      path += `${pen}${x} ${y(reward)}${pen === "M" ? `L${x} ${y(reward)}` : ""}`;
      pen = "L";
      last = [x, y(reward)];
    });
    this.trendPath.setAttribute("d", path);
    this.trendEnd.setAttribute("visibility", last ? "visible" : "hidden");
    if (last) {
      this.trendEnd.setAttribute("cx", last[0]);
      this.trendEnd.setAttribute("cy", last[1]);
    }
    const gaps = trend.length - known.length;
    setText(
      this.trendWords,
      known.length
        ? `last reward ${decimal(known[known.length - 1] / 1e6, 2)}, best ${decimal(top / 1e6, 2)}${gaps ? `, ${gaps} rounds missed` : ""}`
        : "no reports",
    );
  }
}

const COLUMNS = [
  ["col-star", "Pin", true],
  ["col-rank", "Rank"],
  ["col-peer", "Peer"],
  ["col-trend", "Last 24 rounds"],
  ["col-rounds", "Rounds", false, "Those that count, of those reported"],
  ["col-reward", "Contribution", false, "Verified: the reward of the rounds that count"],
  ["col-score", "Reputation", false, "What audits make of it, 0 to 1"],
  ["col-audits", "Audits", false, "Passed and failed"],
];

/** A table of ranks, whose rows are kept by peer, and keep focus while they move. */
export class RankTable {
  constructor(id, caption, onPin) {
    this.onPin = onPin;
    this.rows = new Map();
    this.body = el("tbody", {});
    this.node = el(
      "table",
      { class: "ranks", id },
      el("caption", { class: "unseen" }, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ...COLUMNS.map(([kind, title, hidden, help]) =>
            el("th", { scope: "col", class: kind, title: help }, hidden ? unseen(title) : title),
          ),
        ),
      ),
      this.body,
    );
  }

  show(ranks, pins) {
    const rows = ranks.map((rank) => {
      let row = this.rows.get(rank.peer);
      if (!row) this.rows.set(rank.peer, (row = new RankRow(rank, this.onPin)));
      row.update(rank, pins.has(rank.peer));
      return row.node;
    });
    arrange(this.body, rows);
    const wanted = new Set(ranks.map((rank) => rank.peer));
    for (const peer of this.rows.keys()) if (!wanted.has(peer)) this.rows.delete(peer);
  }
}
