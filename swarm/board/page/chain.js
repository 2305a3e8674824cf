// A list of reports as a chain of commitments: each begins with the state that the one before it left.

import { get } from "./api.js";
import { mark } from "./comb.js";
import { digest, el, peerLink } from "./dom.js";
import { count, micro, plural, short, when } from "./format.js";
import { Paged } from "./paged.js";
import { outcomeTag } from "./verdicts.js";

const PAGE = 20;

function status(report) {
  const tags = [];
  if (report.late) tags.push(el("span", { class: "tag doubt" }, "late"));
  else if (report.ranked === null) tags.push(el("span", { class: "tag" }, "not settled yet"));
  else
    tags.push(
      el("span", { class: report.ranked ? "tag good" : "tag" }, report.ranked ? "counts" : "does not count"),
    );
  if (report.outcome) tags.push(outcomeTag(report.outcome, "audit "));
  return tags;
}

const LINKS = new Map([
  [true, ["follows", "begins where its last report ended"]],
  [false, ["break", "does not begin where its last report ended: the chain breaks here"]],
  [null, ["first", "its first report"]],
]);

function reportItem(report, who) {
  const [kind, words] = LINKS.get(report.follows ?? null);
  const title = who
    ? el("span", { class: "report-who" }, mark(report.peer), peerLink(report.peer, who))
    : el("a", { href: `#/round/${report.round}` }, `Round ${count(report.round)}`);
  return el(
    "li",
    { class: who ? "report" : `report ${kind}`, "data-round": report.round, "data-peer": report.peer },
    el(
      "div",
      { class: "report-head" },
      title,
      el(
        "span",
        { class: "report-reward", "data-field": "reward", "data-value": report.reward },
        micro(report.reward),
      ),
      el("span", { class: "tags" }, ...status(report)),
    ),
    el(
      "p",
      { class: "report-chain" },
      el("span", { class: "muted" }, "state "),
      digest(report.state_before, "State before", short),
      el("span", { "aria-label": "becomes" }, " → "),
      digest(report.state_after, "State after", short),
      who ? null : el("span", { class: `link-word ${kind}` }, words),
    ),
    el(
      "p",
      { class: "report-more muted" },
      "commitment ",
      digest(report.commitment, "Commitment", short),
      " transaction ",
      digest(report.tx, "Transaction", short),
      ` block ${count(report.block)}, ${when(report.at)}, ${plural(report.groups, "group")}`,
    ),
  );
}

/** The reports of one peer, or with `names` (a map that is filled as needed) those of one round. */
export function reportList(path, nothing, names = null) {
  return new Paged({
    list: el("ol", { class: names ? "reports" : "reports chain" }),
    key: (report) => `${report.peer} ${report.round}`,
    make: (report) => reportItem(report, names && (names.get(report.peer) ?? short(report.peer, 8))),
    nothing: () => nothing,
    load: async (before) => {
      const page = await get(path, { before, limit: PAGE });
      if (names) await learnNames(page.reports, names);
      return { items: page.reports, next: page.next };
    },
  });
}

async function learnNames(reports, names) {
  const peers = [...new Set(reports.map((report) => report.peer))].filter((peer) => !names.has(peer));
  if (!peers.length) return;
  const found = await get("/peers", { peer: peers, limit: PAGE });
  for (const rank of found.rows) names.set(rank.peer, rank.name);
}
