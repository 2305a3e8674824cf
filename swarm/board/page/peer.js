// A peer's page: its line of the leaderboard, rewards, chain of commitments, audits, and accounts.

import { get } from "./api.js";
import { reportList } from "./chain.js";
import { Chart } from "./chart.js";
import { mark } from "./comb.js";
import { along } from "./curve.js";
import { copyButton, digest, el, name, setField, setText } from "./dom.js";
import { count, micro, short } from "./format.js";
import { verdictList } from "./verdicts.js";

const REPORTS = 200; // in the chart

const FACTS = [
  ["rank", "rank", ({ rank }) => [rank.rank ?? "", rank.rank === null ? "–" : count(rank.rank)]],
  ["verified_reward", "verified contribution", ({ rank }) => [rank.verified_reward, micro(rank.verified_reward)]],
  ["score", "reputation", ({ rank }) => [rank.score, micro(rank.score, 2)]],
  ["ranked_rounds", "rounds that count", ({ rank }) => [rank.ranked_rounds, count(rank.ranked_rounds)]],
  ["rounds", "rounds reported", ({ rank }) => [rank.rounds, count(rank.rounds)]],
  ["claimed_reward", "claimed reward", ({ rank }) => [rank.claimed_reward, micro(rank.claimed_reward)]],
  ["audits_passed", "audits passed", ({ rank }) => [rank.audits_passed, count(rank.audits_passed)]],
  ["audits_failed", "audits failed", ({ rank }) => [rank.audits_failed, count(rank.audits_failed)]],
  ["age", "age of its chain", ({ age }) => [age, count(age)]],
];

export class PeerPage {
  constructor(app) {
    this.app = app;
    this.title = "Peer";
    this.id = null;
    this.node = el("div", { class: "peer-page" });
    app.pins.addEventListener("change", () => this.#showStar());
  }

  show(id) {
    if (id === this.id && this.page) return this.refresh();
    this.id = id;
    this.page = null;
    this.#build();
    return this.refresh();
  }

  #build() {
    const path = `/peers/${encodeURIComponent(this.id)}`;
    this.heading = el("h1", { id: "peer-title", tabindex: -1 }, "\u00a0");
    this.place = el("span", { class: "peer-mark" });
    this.ids = el("p", { class: "ids" });
    this.tags = el("p", { class: "tags" });
    this.star = el("button", {
      type: "button",
      class: "quiet pin",
      hidden: true,
      click: () => this.app.pins.toggle(this.page.rank.peer),
    });
    this.message = el("p", { class: "empty", hidden: true });
    this.facts = new Map(FACTS.map(([key]) => [key, el("dd", { "data-field": key }, "–")]));
    this.chart = new Chart("Its rewards");
    this.chart.say("It has not reported a round yet.");
    this.reports = reportList(`${path}/reports`, "It has not reported a round yet.");
    this.verdicts = verdictList(`${path}/verdicts`, {
      withPeer: false,
      limit: 10,
      nothing: "No audit of its reports has been settled yet.",
    });
    this.bindings = el("ul", { class: "bindings" });
    const panel = (id, title, note, ...parts) =>
      el(
        "section",
        { class: `panel ${id}`, "aria-labelledby": id },
        el("div", { class: "panel-head" }, el("h2", { id }, title), el("p", { class: "panel-note" }, note)),
        ...parts,
      );
    this.parts = el(
      "div",
      { class: "peer-parts" },
      panel("peer-rewards", "Rewards", "of its reports that were on time", this.chart.node),
      el(
        "div",
        { class: "peer-side" },
        panel("peer-audits", "Audits", "of its reports, by others", this.verdicts.node),
        panel("peer-bindings", "Accounts and keys", "who may write in its name", this.bindings),
      ),
      panel("peer-chain", "Chain of commitments", "newest first", this.reports.node),
    );
    this.node.replaceChildren(
      el(
        "section",
        { class: "peer-head panel", "aria-labelledby": "peer-title" },
        this.place,
        el("div", { class: "peer-name" }, this.heading, this.ids, this.tags),
        this.star,
        this.message,
        el(
          "dl",
          { class: "facts peer-facts" },
          ...FACTS.map(([key, label]) => el("div", {}, el("dt", {}, label), this.facts.get(key))),
        ),
      ),
      this.parts,
    );
  }

  async refresh() {
    const { id } = this;
    let page;
    let reports;
    try {
      page = await get(`/peers/${encodeURIComponent(id)}`);
      const { peer } = page.rank;
      if (this.id === id && peer !== id) {
        // The address had a name, or a key that was rotated: from here on it is the id.
        history.replaceState(history.state, "", `#/peer/${encodeURIComponent(peer)}`);
        return this.show(peer);
      }
      reports = await get(`/peers/${encodeURIComponent(peer)}/reports`, { limit: REPORTS });
    } catch (error) {
      if (this.id === id && !this.page) this.#fail(error);
      return;
    }
    if (this.id !== id) return;
    this.page = page;
    this.#show(page);
    const onTime = reports.reports.filter((report) => !report.late).map((report) => report.round);
    const xs = onTime.length ? range(Math.min(...onTime), Math.max(...onTime)) : [];
    this.chart.show({
      xs,
      lines: [{ name: "its reward", kind: "mean", values: along(xs, reports.reports) }],
      band: null,
    });
    await Promise.all([this.reports.refresh(), this.verdicts.refresh()]);
  }

  #fail(error) {
    setText(this.heading, error.status === 404 ? "No such peer" : "Peer");
    this.parts.hidden = true;
    this.message.hidden = false;
    setText(
      this.message,
      error.status === 404
        ? "No peer of this swarm has that id or name."
        : `This peer cannot be read: ${error.message}.`,
    );
  }

  #show(page) {
    const { rank } = page;
    this.message.hidden = true;
    this.parts.hidden = false;
    if (this.heading.dataset.of !== rank.peer) {
      this.heading.dataset.of = rank.peer;
      this.heading.replaceChildren(name(rank.name));
      this.place.replaceChildren(mark(rank.peer));
      document.title = `${rank.name} · ${this.app.facts.name}`;
    }
    if (this.ids.dataset.of !== rank.peer + rank.account) {
      this.ids.dataset.of = rank.peer + rank.account;
      this.ids.replaceChildren(
        copyButton(rank.peer, rank.peer, "Peer id", "digest whole"),
        el("span", { class: "muted" }, " account "),
        digest(rank.account, "Account", (text) => short(text, 8)),
      );
    }
    for (const [key, , read] of FACTS) setField(this.facts.get(key), ...read(page));
    const tag = (kind, words) => el("span", { class: `tag ${kind}` }, words);
    const now = this.app.clock.where().round;
    this.tags.replaceChildren(
      ...[
        rank.own && tag("own", "yours"),
        page.doing && el("span", { class: "tag own" }, "now: ", name(page.doing)),
        page.probation_until > now && tag("doubt", `on probation until round ${count(page.probation_until)}`),
        rank.rank !== null &&
          (page.rooted ? tag("good", "✓ unbroken from its first state") : tag("doubt", "– its chain was broken")),
        rank.rank !== null &&
          (rank.eligible
            ? tag("good", "✓ others learn from it")
            : tag("doubt", "– others do not learn from it now")),
        page.state && el("span", { class: "muted" }, "state ", digest(page.state, "State", short)),
      ].filter(Boolean),
    );
    this.bindings.replaceChildren(
      ...page.bindings.map((binding) =>
        el(
          "li",
          {},
          binding.account
            ? el(
                "span",
                {},
                "account ",
                digest(binding.account, "Account", (text) => short(text, 8)),
                " speaks for it",
              )
            : el(
                "span",
                {},
                "key rotated to ",
                digest(binding.peer, "Key", (text) => short(text, 8)),
              ),
          el("span", { class: "muted" }, ` from block ${count(binding.block)}, transaction `),
          digest(binding.tx, "Transaction", short),
        ),
      ),
    );
    this.#showStar();
  }

  #showStar() {
    if (!this.page) return;
    const pinned = this.app.pins.has(this.page.rank.peer);
    this.star.hidden = false;
    this.star.setAttribute("aria-pressed", String(pinned));
    setText(this.star, pinned ? "★ Pinned" : "☆ Pin");
  }
}

const range = (first, last) => Array.from({ length: last - first + 1 }, (_, k) => first + k);
