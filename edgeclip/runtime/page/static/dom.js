// Small helpers: elements and numbers as the page shows them.

export const $ = (id) => document.getElementById(id);
export function el(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
export const whole = (value) => value.toLocaleString("en-GB");
export const score = (value) => value.toFixed(2);
export const brief = (value) => (value === null || value === undefined ? "–" : value >= 100 ? whole(Math.round(value)) : value.toFixed(1));
export function time(seconds) {
  const s = Math.round(Math.max(0, seconds) * 10) / 10, h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  const rest = (s % 60).toFixed(1).padStart(4, "0");
  return (h ? `${h}:${String(m).padStart(2, "0")}` : `${m}`) + ":" + rest;
}
