// Settled audits: how each ended, what was found wrong, and who said what.

import { get } from "./api.js";
import { mark } from "./comb.js";
import { el, peerLink, said } from "./dom.js";
import { count, micro, plural } from "./format.js";
import { Paged } from "./paged.js";

const OUTCOMES = {
  passed: ["good", "✓"],
  failed: ["bad", "✗"],
  withheld: ["bad", "∅"],
  unranked: ["doubt", "–"],
  undecided: ["", "?"],
};
const CHECKS = {
  commitment: "what it handed over is not what it committed to",
  batch: "it learned from another batch than the rules say",
  provenance: "its model does not write these completions",
  step: "the update does not give the state that it claims",
  availability: "it did not serve what it must",
};

/** An outcome in colour, sign and word. */
export function outcomeTag(outcome, before = "") {
  const [kind, sign] = OUTCOMES[outcome] ?? ["", "?"];
  return el("span", { class: `tag ${kind}`, "data-outcome": outcome }, `${sign} ${before}${outcome}`);
}

function amount(fault) {
  if (!fault.count) return "";
  const words = {
    provenance: plural(fault.count, "completion"),
    step: plural(fault.count, "number of the state", "numbers of the state"),
    batch: `${micro(fault.count)} of reward`,
  };
  return ` (${words[fault.check] ?? count(fault.count)})`;
}

function verdictItem(verdict, withPeer) {
  const counted = verdict.voices?.length ?? 0;
  return el(
    "li",
    { class: "verdict", "data-peer": verdict.peer, "data-round": verdict.round },
    el(
      "div",
      { class: "verdict-head" },
      outcomeTag(verdict.outcome),
      withPeer
        ? el("span", { class: "report-who" }, mark(verdict.peer), peerLink(verdict.peer, verdict.name))
        : null,
      el(
        "span",
        { class: "muted" },
        `round ${count(verdict.round)}, settled in ${count(verdict.settled_in)}, class ${verdict.audit_class}`,
      ),
      verdict.planted ? el("span", { class: "tag" }, "a planted fault, to test its auditors") : null,
    ),
    verdict.faults.length
      ? el(
          "ul",
          { class: "faults" },
          ...verdict.faults.map((fault) =>
            el(
              "li",
              {},
              el("strong", {}, fault.check),
              `: ${CHECKS[fault.check] ?? ""}${amount(fault)}`,
              fault.detail ? said(fault.detail) : null,
            ),
          ),
        )
      : null,
    counted
      ? el(
          "ul",
          { class: "voices", "aria-label": "Auditors" },
          ...verdict.voices.map((voice) =>
            el(
              "li",
              {},
              mark(voice.peer),
              peerLink(voice.peer, voice.name),
              ` said ${voice.outcome}`,
              voice.counted ? null : el("span", { class: "muted" }, " (not counted)"),
            ),
          ),
        )
      : el("p", { class: "muted small" }, "No auditor's word came in time."),
    verdict.outcome === "undecided"
      ? el("p", { class: "muted small" }, "Too few said anything, so the round does not count.")
      : null,
  );
}

/** The audits of one peer, or of all. */
export function verdictList(path, { withPeer, limit, nothing }) {
  return new Paged({
    list: el("ul", { class: "verdicts" }),
    key: (verdict) => `${verdict.peer} ${verdict.round} ${verdict.settled_in}`,
    make: (verdict) => verdictItem(verdict, withPeer),
    nothing: () => nothing,
    load: async (before) => {
      const page = await get(path, { before, limit });
      return { items: page.verdicts, next: page.next };
    },
  });
}

/** The page of all audits. */
export class AuditsPage {
  constructor() {
    this.title = "Audits";
    this.list = verdictList("/verdicts", {
      withPeer: true,
      limit: 25,
      nothing:
        "No audit has been settled yet. Reports are drawn for audit by the block after the one that holds them.",
    });
    this.node = el(
      "section",
      { class: "panel", "aria-labelledby": "audits-title" },
      el("h1", { id: "audits-title", tabindex: -1 }, "Audits"),
      el(
        "p",
        { class: "lead" },
        "Reports that other peers checked again: prompts, rewards, every token by its seed, and the update itself.",
      ),
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
