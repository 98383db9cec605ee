"use strict";
// Elements and texts. No text is read as HTML: a name from a model stays text.

// Makes an element. "onclick" and the like add listeners; null and false children are left out.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  return made;
}

// A text from a model, which cannot change the direction of the text around it.
function literal(text, kind = "") {
  return element("bdi", { class: kind || null }, text);
}

function chip(precision) {
  return element("span", { class: `chip ${precision}` }, precision);
}

// A button that looks like a link: the page has no addresses that a model could set.
function link(text, onclick, title = null) {
  return element("button", { class: "link", type: "button", onclick, title }, literal(text));
}

function bytesText(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 1000) return unit === "B" ? `${count} B` : `${count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} GB`;
}

function countText(count) {
  return count.toLocaleString("en-US");
}

function plural(count, one, many = `${one}s`) {
  return `${countText(count)} ${count === 1 ? one : many}`;
}

function shareText(share) {
  const percent = 100 * share;
  if (percent === 0) return "0 %";
  return percent < 0.01 ? "< 0.01 %" : `${percent.toFixed(percent < 10 ? 2 : 1)} %`;
}

function numberText(value) {
  if (value === null) return "not finite";
  return value >= 1e5 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

// Cuts out the middle of a text: the end of a path says more than its beginning.
function shortened(text, most) {
  if (text.length <= most) return text;
  const tail = Math.floor((most - 1) * 0.6);
  return `${text.slice(0, most - 1 - tail)}…${text.slice(text.length - tail)}`;
}
