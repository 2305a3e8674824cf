// What a cell said about one question: answers, critiques, revisions, and who was right.

import { mark } from "./comb.js";
import { arrange, cut, el, name, peerLink, said, setText } from "./dom.js";
import { decimal, plural } from "./format.js";

const TITLE_CHARACTERS = 160;
const RIGHT = 0.999; // a score from here on is a right answer

const SIGNS = { right: "✓", wrong: "✗", partly: "◐", unknown: "?" };

function grade(score) {
  if (score === null) return "unknown";
  if (score >= RIGHT) return "right";
  return score <= 0 ? "wrong" : "partly";
}

const rightOf = (groups) =>
  groups.flatMap((group) => group.completions).filter((c) => grade(c.score) === "right").length;
const allOf = (groups) => groups.reduce((sum, group) => sum + group.completions.length, 0);

function pips(completions) {
  return el(
    "span",
    { class: "pips", "aria-hidden": "true" },
    ...completions.map((completion) => {
      const kind = grade(completion.score);
      return el("span", { class: `pip ${kind}` }, SIGNS[kind]);
    }),
  );
}

/** Whom a letter means in this prompt. */
function named(letter, shown) {
  if (letter === null) return ["", "unreadable"];
  if (letter === "none") return ["", "none is right"];
  return [letter.slice(0, 2), shown[letter.charCodeAt(0) - 65] ?? ""];
}

/** A letter and whom it means, as nodes. */
function namedNodes(letter, shown) {
  const [head, who] = named(letter, shown);
  return head ? [el("b", {}, head), " ", name(who)] : [who];
}

/** Whom a group names, most often first. */
function namedList(group) {
  const times = new Map();
  for (const { names } of group.completions) times.set(names, (times.get(names) ?? 0) + 1);
  const most = [...times].sort((a, b) => b[1] - a[1]);
  return el(
    "ul",
    { class: "named", "aria-label": "Whom it names" },
    ...most.map(([letter, n]) => el("li", {}, ...namedNodes(letter, group.shown), ` ×${n}`)),
  );
}

function completionNode(completion, stage, shown) {
  const kind = grade(completion.score);
  const words =
    stage === "critiques"
      ? completion.score === null
        ? "not scored"
        : `earned ${decimal(completion.score)}`
      : {
          right: "right",
          wrong: "wrong",
          partly: `partly right, ${decimal(completion.score ?? 0)}`,
          unknown: "not scored",
        }[kind];
  const sign = stage === "critiques" ? "" : `${SIGNS[kind]} `;
  return el(
    "div",
    { class: `completion ${stage === "critiques" ? "" : kind}` },
    said(completion.text + (completion.cut ? " […]" : "")),
    el(
      "p",
      { class: "completion-note" },
      el("span", { class: `grade ${stage === "critiques" ? "" : kind}` }, sign, words),
      stage === "answers"
        ? null
        : el(
            "span",
            {},
            " · ",
            ...(completion.names === null || completion.names === "none" ? [] : ["names "]),
            ...namedNodes(completion.names, shown),
          ),
    ),
  );
}

function groupNode(group, stage) {
  const { completions } = group;
  const right = completions.filter((completion) => grade(completion.score) === "right").length;
  const head = el("div", { class: "group-head" }, mark(group.peer), peerLink(group.peer, group.name));
  if (stage === "critiques") {
    const known = completions.filter((completion) => completion.score !== null);
    const mean = known.reduce((sum, completion) => sum + completion.score, 0) / known.length;
    head.append(
      el("span", { class: "tally" }, known.length ? `earned ${decimal(mean)} on average` : "not scored"),
    );
  } else {
    head.append(pips(completions), el("span", { class: "tally" }, `right ${right} of ${completions.length}`));
  }
  const most = stage === "answers" ? null : namedList(group);
  const [first, ...others] = completions.map((completion) => () => completionNode(completion, stage, group.shown));
  const rest = el(
    "details",
    {
      class: "others",
      toggle: () => {
        if (rest.open && rest.children.length === 1) rest.append(...others.map((make) => make()));
      },
    },
    el("summary", {}, `${others.length} more`),
  );
  const verdict =
    stage === "critiques" || !completions.length
      ? ""
      : right * 2 > completions.length
        ? "mostly-right"
        : right
          ? ""
          : "all-wrong";
  return el(
    "li",
    { class: `group ${verdict}`, "data-peer": group.peer },
    head,
    most,
    first ? first() : null,
    others.length ? rest : null,
  );
}

const STAGES = {
  answers: ["answer", "Answers"],
  critiques: ["critique", "Critiques"],
  revisions: ["revise", "After thinking again"],
};

export class Thread {
  constructor(open) {
    this.text = "";
    this.groups = new Map();
    this.title = el("h2", { class: "thread-title", dir: "auto" });
    this.score = el("span", { class: "thread-score" });
    this.question = el("blockquote", { class: "question" });
    this.truth = el("p", { class: "truth" });
    this.columns = Object.entries(STAGES).map(([key, [stage, title]]) => {
      const list = el("ul", { class: "groups" });
      const none = el("p", { class: "muted nothing" });
      const node = el("section", { class: `column ${key}` }, el("h3", {}, title), list, none);
      return { key, stage, list, none, node };
    });
    this.node = el(
      "details",
      { class: "thread panel", open, toggle: () => this.#fill() },
      el("summary", {}, this.title, this.score),
      el(
        "div",
        { class: "thread-body" },
        this.question,
        this.truth,
        el("div", { class: "columns" }, ...this.columns.map((column) => column.node)),
      ),
    );
  }

  /** Whether the visitor opened something in it. */
  get inUse() {
    return this.node.querySelector(".others[open], [aria-expanded=true]") !== null;
  }

  show(thread, heard) {
    const text = JSON.stringify([thread, heard]);
    if (text === this.text) return;
    this.text = text;
    this.thread = thread;
    this.heard = heard;
    const { question, answers, revisions } = thread;
    const line = question.replace(/\s+/g, " ");
    setText(this.title, cut(line, TITLE_CHARACTERS));
    const parts = [];
    if (allOf(answers)) parts.push(`first ${rightOf(answers)} of ${allOf(answers)} right`);
    if (allOf(revisions)) parts.push(`then ${rightOf(revisions)} of ${allOf(revisions)}`);
    setText(this.score, parts.join(", ") || `${plural(answers.length, "peer")} so far`);
    this.#fill();
  }

  #fill() {
    if (!this.node.open || !this.thread || this.filled === this.text) return;
    this.filled = this.text;
    const { question, answer, proposed_by: proposer } = this.thread;
    this.question.hidden = this.title.textContent === question; // the title says it all
    if (!this.question.hidden) this.question.replaceChildren(said(question));
    this.truth.replaceChildren(
      ...(answer
        ? [el("span", { class: "truth-label" }, "True answer"), said(answer)]
        : [
            el(
              "span",
              { class: "muted" },
              this.heard.includes("answer")
                ? "The task has no true answer in words."
                : "The true answer shows when the answers are in.",
            ),
          ]),
    );
    if (proposer) this.truth.append(el("span", { class: "muted" }, "asked by ", name(proposer)));
    for (const { key, stage, list, none } of this.columns) {
      const groups = [...this.thread[key]];
      if (key !== "critiques")
        groups.sort((a, b) => rightOf([b]) / b.completions.length - rightOf([a]) / a.completions.length);
      arrange(
        list,
        groups.map((group) => this.#group(group, key)),
      );
      none.hidden = groups.length > 0;
      setText(none, this.heard.includes(stage) ? "Nobody said anything here." : "Not heard yet.");
    }
  }

  #group(group, key) {
    const id = `${key} ${group.peer}`;
    const text = JSON.stringify(group);
    const old = this.groups.get(id);
    if (old?.text === text) return old.node;
    const node = groupNode(group, key);
    if (old?.node.querySelector(".others")?.open) node.querySelector(".others")?.setAttribute("open", "");
    this.groups.set(id, { text, node });
    return node;
  }
}
