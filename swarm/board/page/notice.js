// The bar at the bottom that appears when something is away. It lies over the page, so nothing moves.

import { cut, setText } from "./dom.js";
import { clockTime } from "./format.js";

const REASON_CHARACTERS = 200;

export class Notice {
  constructor(root) {
    this.root = root;
    this.lostSince = null;
    this.pulse = null;
    this.readAt = () => "";
  }

  /** The board is not heard since then (Unix ms); null: it is. */
  lost(since) {
    this.lostSince = since;
    this.show();
  }

  ledger(pulse) {
    this.pulse = pulse;
    this.show();
  }

  show() {
    let kind = "";
    let words = "";
    if (this.lostSince !== null) {
      kind = "board";
      words = `The board cannot be reached since ${clockTime(this.lostSince / 1000)}. What you see is from then; trying again.`;
    } else if (this.pulse?.ledger === "away") {
      kind = "ledger";
      const since = this.readAt();
      words = `The ledger does not answer${since ? ` since ${since}` : ""}. Standings are from then; the clock goes on. (${cut(this.pulse.trouble, REASON_CHARACTERS) || "no reason known"})`;
    }
    document.body.dataset.trouble = kind;
    this.root.hidden = !kind;
    this.root.dataset.kind = kind;
    setText(this.root, words);
  }
}
