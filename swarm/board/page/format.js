// How numbers, times and digests are written. Pure functions.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const digits = [0, 1, 2, 3].map(
  (n) => new Intl.NumberFormat("en", { minimumFractionDigits: n, maximumFractionDigits: n }),
);
const dayAndTime = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const timeOfDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const count = (n) => whole.format(n);

/** Micro-units as a number with so many decimals. */
export const micro = (n, decimals = 3) => digits[decimals].format(n / 1e6);

export const decimal = (n, decimals = 2) => digits[decimals].format(n);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Seconds as 0:12, 4:05 or 1:02:03. */
export function countdown(seconds) {
  const s = Math.max(0, Math.ceil(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(s / 3600);
  const minutes = Math.floor(s / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

/** How long ago, roughly. */
export function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** Unix seconds in the visitor's time zone. */
export const when = (seconds) => dayAndTime.format(new Date(seconds * 1000));
export const clockTime = (seconds) => timeOfDay.format(new Date(seconds * 1000));

/** The ends of something long. */
export const short = (text, ends = 6) =>
  text.length > 2 * ends + 1 ? `${text.slice(0, ends)}…${text.slice(-4)}` : text;
