// The ledger's clock as this page goes on with it, and where in a round that is.

import { countdown } from "./format.js";

/** The parts of a round: `{name, from, to}` with fractions. */
export function segments(facts) {
  const parts = [];
  let from = 0;
  for (const { name, ends_at: to } of facts.stages) {
    parts.push({ name, from, to });
    from = to;
  }
  if (from < 0.999) parts.push({ name: "report", from, to: 1 });
  return parts;
}

export class Clock {
  constructor(facts) {
    this.facts = facts;
    this.parts = segments(facts);
    this.pulse = null;
    this.skew = 0;
  }

  /** What the board said last; our own clock's difference is corrected when it is noticeable. */
  set(pulse) {
    const skew = pulse.at - Date.now() / 1000;
    if (this.pulse === null || Math.abs(skew - this.skew) > 0.4) this.skew = skew;
    this.pulse = pulse;
  }

  now() {
    return Date.now() / 1000 + this.skew;
  }

  /** What to say where no peer has reported yet. */
  nothingYet() {
    const { round, roundEnds } = this.where();
    const left = countdown(roundEnds - this.now());
    const which = round > 0 ? "this round ends" : round === 0 ? "the first round ends" : "the first round begins";
    return `No peer has reported yet: ${which} in ${left}.`;
  }

  /**
   * The round, its stage (an index into `parts`; -1 before the first round), how far the round is, and when
   * stage and round end. As the board says while that lasts; after it, from the ledger's clock alone.
   */
  where() {
    const { genesis, round_seconds: length } = this.facts;
    const now = this.now();
    const { pulse } = this;
    if (now < genesis && (!pulse || pulse.round < 0)) {
      return { round: -1, index: -1, stage: "waiting", fraction: 0, stageEnds: genesis, roundEnds: genesis };
    }
    const fresh = pulse && pulse.round >= 0 && now < pulse.round_ends_at;
    const round = fresh ? pulse.round : Math.max(0, Math.floor((now - genesis) / length));
    const roundEnds = fresh ? pulse.round_ends_at : genesis + (round + 1) * length;
    const fraction = Math.min(1, Math.max(0, 1 - (roundEnds - now) / length));
    let index = this.parts.findIndex((part) => fraction < part.to);
    if (index < 0) index = this.parts.length - 1;
    if (fresh && now < pulse.stage_ends_at) {
      const said = this.parts.findIndex((part) => part.name === pulse.stage);
      if (said >= 0) index = said;
    }
    const part = this.parts[index];
    const stageEnds = roundEnds - (1 - part.to) * length;
    return { round, index, stage: part.name, fraction, stageEnds, roundEnds };
  }
}
