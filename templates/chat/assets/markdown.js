// Markdown as DOM nodes. What a model writes is hostile until proven otherwise: nothing here parses HTML, no attribute but
// the few below is ever set, and an address is used only if it is of the web or of mail. Every loop moves forward, every
// nesting has a floor, so that no text costs more than a small multiple of its length.
import { el } from "./dom.js";

const DEEPEST = 12;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

/** The address, if a link may lead there. Relative ones may not: they would lead into this page. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return SCHEMES.has(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/**
 * Renders a text into nodes. `options.images` are the origins from which images may be loaded; `options.code(text, language)`
 * makes a block of code.
 */
export function render(text, options) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), options, 0);
}

/** Where the last block begins that may still change while text is added at the end. */
export function settledLength(text) {
  let fence = null;
  let settled = 0;
  let position = 0;
  let blank = false;
  for (const line of text.split("\n")) {
    const mark = fenceOf(line);
    const starts = blank && fence === null && !/^\s/.test(line) && !/^(?:[-*+>|]|\d+[.)])/.test(line) && line !== "";
    if (starts) settled = position;
    if (fence !== null) {
      if (mark && mark.mark[0] === fence[0] && mark.mark.length >= fence.length && mark.info === "") fence = null;
    } else if (mark) {
      fence = mark.mark;
    }
    blank = line.trim() === "";
    position += line.length + 1;
  }
  return settled;
}

function fenceOf(line) {
  const match = /^( {0,3})(`{3,}|~{3,})\s*([^`\n]*)$/.exec(line);
  return match && { indent: match[1].length, mark: match[2], info: match[3].trim() };
}

const BULLET = /^( {0,3})([-*+])(?: +|$)/;
const NUMBER = /^( {0,3})(\d{1,9})[.)](?: +|$)/;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const TABLE_LINE = /^ *\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?\|? *$/;

function blocks(lines, options, depth) {
  const fragment = document.createDocumentFragment();
  if (depth > DEEPEST) {
    fragment.append(el("p", {}, lines.join("\n")));
    return fragment;
  }
  // Which way it is written, each block says for itself and all that is in it.
  const whole = depth === 0 ? { dir: "auto" } : {};
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (line.trim() === "") { at += 1; continue; }
    const fence = fenceOf(line);
    if (fence) {
      const code = [];
      at += 1;
      while (at < lines.length) {
        const end = fenceOf(lines[at]);
        if (end && end.mark[0] === fence.mark[0] && end.mark.length >= fence.mark.length && end.info === "") break;
        // As far as the fence is indented, so is what is in it.
        code.push(lines[at].slice(Math.min(fence.indent, lines[at].length - lines[at].trimStart().length)));
        at += 1;
      }
      at += 1;
      fragment.append(options.code(code.join("\n"), fence.info.split(/\s/)[0].slice(0, 30)));
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      // The page has its own first two levels.
      const level = Math.min(6, heading[1].length + 2);
      fragment.append(el(`h${level}`, whole, inline(heading[2].replace(/\s#+\s*$/, ""), options)));
      at += 1;
      continue;
    }
    if (RULE.test(line)) { fragment.append(el("hr")); at += 1; continue; }
    if (/^ {0,3}>/.test(line)) {
      const quoted = [];
      while (at < lines.length && /^ {0,3}>/.test(lines[at])) {
        quoted.push(lines[at].replace(/^ {0,3}> ?/, ""));
        at += 1;
      }
      fragment.append(el("blockquote", whole, blocks(quoted, options, depth + 1)));
      continue;
    }
    if (BULLET.test(line) || NUMBER.test(line)) {
      const [list, next] = listAt(lines, at, options, depth);
      fragment.append(list);
      at = next;
      continue;
    }
    if (tableStarts(lines, at)) {
      const [table, next] = tableAt(lines, at, options, whole);
      fragment.append(table);
      at = next;
      continue;
    }
    const paragraph = [line.trimStart()];
    at += 1;
    while (at < lines.length && lines[at].trim() !== "" && !interrupts(lines[at]) && !tableStarts(lines, at)) {
      paragraph.push(lines[at].trimStart());
      at += 1;
    }
    fragment.append(el("p", whole, inline(paragraph.join("\n"), options)));
  }
  return fragment;
}

function tableStarts(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].length < 2000 && TABLE_LINE.test(lines[at + 1]);
}

/** Whether a line ends the paragraph above it. One that begins with a year is no list. */
function interrupts(line) {
  const number = NUMBER.exec(line);
  return number ? number[2] === "1" : startsBlock(line);
}

function startsBlock(line) {
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) || BULLET.test(line)
    || NUMBER.test(line);
}

function listAt(lines, start, options, depth) {
  const whole = depth === 0 ? { dir: "auto" } : {};
  const ordered = NUMBER.exec(lines[start]);
  const pattern = ordered ? NUMBER : BULLET;
  const first = ordered ? Number(ordered[2]) : 1;
  const list = ordered ? el("ol", first === 1 ? whole : { ...whole, start: first }) : el("ul", whole);
  let at = start;
  while (at < lines.length) {
    const mark = pattern.exec(lines[at]);
    if (!mark || RULE.test(lines[at])) break;
    const indent = mark[0].length;
    const item = [lines[at].slice(indent)];
    at += 1;
    let blank = false;
    while (at < lines.length) {
      const line = lines[at];
      if (line.trim() === "") { item.push(""); blank = true; at += 1; continue; }
      const deeper = line.length - line.trimStart().length;
      // Models indent by two, three or four; anything from two on belongs to the item.
      if (deeper >= 2) { item.push(line.slice(Math.min(deeper, Math.max(indent, 2)))); blank = false; at += 1; continue; }
      if (blank || startsBlock(line)) break;
      item.push(line);
      at += 1;
    }
    while (item.length > 1 && item[item.length - 1] === "") item.pop();
    const content = blocks(item, options, depth + 1);
    const only = content.childNodes.length > 0 && content.firstChild.nodeName === "P" ? content.firstChild : null;
    // A tight item is its text and not a paragraph.
    if (only) only.replaceWith(...only.childNodes);
    list.append(el("li", {}, content));
  }
  return [list, at];
}

function cells(line) {
  const found = [];
  let cell = "";
  const trimmed = line.trim();
  const inner = trimmed.startsWith("|") ? trimmed.slice(1) : trimmed;
  for (let at = 0; at < inner.length; at += 1) {
    if (inner[at] === "\\" && inner[at + 1] === "|") { cell += "|"; at += 1; continue; }
    if (inner[at] === "|") { found.push(cell.trim()); cell = ""; continue; }
    cell += inner[at];
  }
  if (cell.trim() !== "") found.push(cell.trim());
  return found.slice(0, 40);
}

function tableAt(lines, start, options, whole) {
  const header = cells(lines[start]);
  const head = el("tr");
  for (const cell of header) head.append(el("th", { scope: "col" }, inline(cell, options)));
  const body = el("tbody");
  let at = start + 2;
  while (at < lines.length && lines[at].includes("|") && lines[at].trim() !== "") {
    const row = el("tr");
    const found = cells(lines[at]);
    for (let column = 0; column < header.length; column += 1) row.append(el("td", {}, inline(found[column] ?? "", options)));
    body.append(row);
    at += 1;
  }
  return [el("div", { class: "scroller", tabindex: "0", role: "region" }, el("table", whole, el("thead", {}, head), body)), at];
}

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

/** The texts, emphasis, code and links of one block. */
function inline(text, options, depth = 0, linked = false) {
  const fragment = document.createDocumentFragment();
  if (depth > DEEPEST) { fragment.append(text); return fragment; }
  let plain = "";
  let at = 0;
  // What was looked for once and is not there is not looked for again: otherwise long texts of marks cost their square.
  const absent = new Set();
  const flush = () => { if (plain !== "") { fragment.append(plain); plain = ""; } };
  const find = (needle, from) => {
    if (absent.has(needle)) return -1;
    const found = text.indexOf(needle, from);
    if (found < 0) absent.add(needle);
    return found;
  };
  while (at < text.length) {
    const c = text[at];
    if (c === "\\" && at + 1 < text.length && PUNCTUATION.test(text[at + 1])) { plain += text[at + 1]; at += 2; continue; }
    if (c === "\n") {
      flush();
      // A chat's line break is meant as one.
      fragment.append(el("br"));
      at += 1;
      continue;
    }
    if (c === "`") {
      let length = 1;
      while (text[at + length] === "`") length += 1;
      const mark = text.slice(at, at + length);
      const end = find(mark, at + length);
      if (end > 0) {
        flush();
        fragment.append(el("code", {}, text.slice(at + length, end).replace(/^ (.*) $/s, "$1")));
        at = end + length;
      } else { plain += mark; at += length; }
      continue;
    }
    if ((c === "*" || c === "_" || c === "~")) {
      // `***both***` is the one around the other.
      let run = c !== "~" && text.startsWith(c.repeat(3), at) && text[at + 3] !== c ? 3 : text[at + 1] === c ? 2 : 1;
      const endOf = (length) => {
        const opens = text[at + length] !== undefined && !/\s/.test(text[at + length])
          && !(c === "_" && at > 0 && WORD.test(text[at - 1])) && !(c === "~" && length === 1);
        return opens ? closing(text, c.repeat(length), at + length, find) : -1;
      };
      let end = endOf(run);
      if (end < 0 && run === 3) { run = 2; end = endOf(run); }
      if (end > 0) {
        flush();
        const tag = c === "~" ? "del" : run >= 2 ? "strong" : "em";
        const within = inline(text.slice(at + run, end), options, depth + 1, linked);
        fragment.append(el(tag, {}, run === 3 ? el("em", {}, within) : within));
        at = end + run;
      } else { plain += c.repeat(run); at += run; }
      continue;
    }
    const image = c === "!" && text[at + 1] === "[";
    if ((c === "[" && !linked) || image) {
      const link = linkAt(text, image ? at + 1 : at, find);
      if (link) {
        flush();
        fragment.append(image ? picture(link, options) : anchor(link, options, depth));
        at = link.end;
        continue;
      }
    }
    // All that models write in HTML, for it is the only way to break a line in a cell.
    const lineBreak = c === "<" ? /^<br ?\/?>/i.exec(text.slice(at, at + 6)) : null;
    if (lineBreak) { flush(); fragment.append(el("br")); at += lineBreak[0].length; continue; }
    if (c === "<" && !linked) {
      const end = find(">", at + 1);
      const inside = end > 0 && end - at < 2000 ? text.slice(at + 1, end) : "";
      const url = inside !== "" && !/\s/.test(inside) ? safeUrl(inside) : null;
      if (url) { flush(); fragment.append(external(url, inside)); at = end + 1; continue; }
    }
    if (c === "h" && !linked && /^https?:\/\//.test(text.slice(at, at + 8)) && !(at > 0 && WORD.test(text[at - 1]))) {
      let end = at;
      while (end < text.length && end - at < 2000 && !/[\s<>"`]/.test(text[end])) end += 1;
      end = trimmedEnd(text, at, end);
      const url = safeUrl(text.slice(at, end));
      if (url) { flush(); fragment.append(external(url, text.slice(at, end))); at = end; continue; }
    }
    plain += c;
    at += 1;
  }
  flush();
  return fragment;
}

/** Where an address ends that stands in a text: before what belongs to the text. A bracket belongs to it that was opened in it. */
function trimmedEnd(text, start, end) {
  let open = 0;
  for (let at = start; at < end; at += 1) open += text[at] === "(" ? 1 : text[at] === ")" ? -1 : 0;
  while (end > start && /[.,;:!?)\]'*_~]/.test(text[end - 1])) {
    if (text[end - 1] === ")") {
      if (open >= 0) break;
      open += 1;
    }
    end -= 1;
  }
  return end;
}

/** Where an emphasis ends: at its mark, behind something, and for `_` not within a word. */
function closing(text, mark, from, find) {
  let end = find(mark, from + 1);
  for (let tries = 0; end > 0 && tries < 40; tries += 1) {
    const before = text[end - 1];
    const after = text[end + mark.length];
    const doubled = mark.length === 1 && (after === mark || before === mark);
    const within = mark[0] === "_" && after !== undefined && WORD.test(after);
    if (!/\s/.test(before) && before !== "\\" && !doubled && !within) return end;
    end = find(mark, end + (doubled ? 2 : 1));
  }
  return -1;
}

/** `[text](address "title")` at a place, if it is one. Brackets in the text may be nested a little. */
function linkAt(text, start, find) {
  if (find("](", start) < 0) return null;
  let depth = 0;
  let end = -1;
  for (let at = start; at < text.length && at - start < 1000; at += 1) {
    if (text[at] === "\\") { at += 1; continue; }
    if (text[at] === "[") depth += 1;
    if (text[at] === "]") { depth -= 1; if (depth === 0) { end = at; break; } }
    if (depth > 6) return null;
  }
  if (end < 0 || text[end + 1] !== "(") return null;
  let close = -1;
  let open = 0;
  for (let at = end + 2; at < text.length && at - end < 2100; at += 1) {
    if (text[at] === "\n") return null;
    if (text[at] === "(") open += 1;
    if (text[at] === ")") { if (open === 0) { close = at; break; } open -= 1; }
  }
  if (close < 0) return null;
  const target = text.slice(end + 2, close).trim().replace(/\s+(?:"[^"]*"|'[^']*')$/, "").replace(/^<(.*)>$/, "$1");
  return { label: text.slice(start + 1, end), target, end: close + 1 };
}

function external(url, ...children) {
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow ugc" }, ...children);
}

function anchor(link, options, depth) {
  const url = safeUrl(link.target);
  const label = inline(link.label, options, depth + 1, true);
  return url ? external(url, label) : el("span", {}, label);
}

/** An image, where the tenant allows its origin; otherwise what it shows, as a link. Loading one tells its host who reads. */
function picture(link, options) {
  const url = safeUrl(link.target);
  const label = link.label.trim() || options.imageLabel;
  if (url && url.protocol === "https:" && options.images.includes(url.origin)) {
    return el("img", { src: url.href, alt: link.label, loading: "lazy", referrerpolicy: "no-referrer" });
  }
  return url ? external(url, label) : el("span", {}, label);
}
