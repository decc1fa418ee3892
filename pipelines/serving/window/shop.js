"use strict";
const $ = (at, of = document) => of.querySelector(at);
const seen = { user: "", item: null, basket: new Map(), home: [], changes: new Set(), key: sessionStorage.getItem("key") || "", turn: 0 };

function make(tag, about = {}, ...inside) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) one.addEventListener(event, act);
    else if (name === "class") one.className = value;
    else if (value !== null && value !== undefined && value !== false) one.setAttribute(name, value);
  }
  one.append(...inside.filter((part) => part !== null && part !== undefined));
  return one;
}

async function ask(path, body) {
  const begun = performance.now();
  const headers = body ? { "content-type": "application/json" } : {};
  if (seen.key) headers["x-api-key"] = seen.key;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body ? JSON.stringify(body) : undefined });
  if (answer.status === 401 && (await keyed())) return ask(path, body);
  const told = await answer.json();
  if (!answer.ok) throw new Error(`${told.field ? told.field + ": " : ""}${told.found}; ${told.hint}`);
  return Object.assign(told, { ms: performance.now() - begun });
}

function keyed() {
  return new Promise((done) => {
    const box = $("#key");
    box.addEventListener("close", () => {
      seen.key = $("#secret").value;
      sessionStorage.setItem("key", seen.key);
      done(box.returnValue === "ok" && seen.key !== "");
    }, { once: true });
    box.showModal();
  });
}

const user = () => encodeURIComponent(seen.user);
const hash = (text) => [...text].reduce((sum, letter) => (sum * 33 + letter.codePointAt(0)) >>> 0, 5381);
const money = (price) => (price === undefined || price === null ? "" : price.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }));

// Placeholder art: a drawing for the category, in the colour that the title names. Shapes differ, so grey is enough to tell them apart.
const DRAWN = {
  candles: "M24 50V28h16v22zM32 28v-6M32 22c-4-4 0-8 0-11 3 4 4 8 0 11z", kitchen: "M14 26h30v14a8 8 0 0 1-8 8H22a8 8 0 0 1-8-8zM44 30h10M20 18v3M29 16v5M38 18v3",
  mirrors: "M32 10a14 19 0 1 0 .1 0zM32 48v6M24 55h16M27 20l-4 8", coffee: "M16 24h26v16a9 9 0 0 1-9 9h-8a9 9 0 0 1-9-9zM42 28h4a6 6 0 0 1 0 12h-4M24 11c-3 4 3 5 0 9M33 11c-3 4 3 5 0 9",
  bedding: "M10 46V20M10 40h44v6M54 40v-6a6 6 0 0 0-6-6H26v12M14 32a5 5 0 1 0 .1 0z", baking: "M16 34h32l-4 18H20zM14 34a9 9 0 0 1 7-13 12 12 0 0 1 22 0 9 9 0 0 1 7 13zM26 38l1 10M38 38l-1 10",
  tea: "M16 30h26v8a12 12 0 0 1-12 12h-2a12 12 0 0 1-12-12zM42 33l10-7v6l-8 10M26 30a4 4 0 0 1 6 0M29 22v3", jewellery: "M32 24a14 14 0 1 0 .1 0zM26 12h12l5 6-11 9-11-9z",
  bags: "M15 26h34l3 28H12zM23 26v-5a9 9 0 0 1 18 0v5", garden: "M22 40h20l-3 15H25zM32 40V22M32 30c-9 0-12-5-12-11 8 0 12 4 12 11zM32 25c0-7 4-11 12-11 0 7-4 11-12 11z",
  clocks: "M32 12a20 20 0 1 0 .1 0zM32 20v13l8 5", rugs: "M12 20h40v24H12zM18 26h28v12H18zM12 20v-3M22 20v-3M32 20v-3M42 20v-3M52 20v-3M12 44v3M22 44v3M32 44v3M42 44v3M52 44v3M32 28l5 4-5 4-5-4z",
  lighting: "M24 12h16l9 20H15zM32 32v20M22 53h20M40 32v7", stationery: "M18 12h22l8 8v34H18zM40 12v8h8M25 30h16M25 37h16M25 44h10", toys: "M32 26a13 13 0 1 0 .1 0zM22 14a5 5 0 1 0 .1 0zM42 14a5 5 0 1 0 .1 0zM28 36v1M36 36v1M29 43c2 2 4 2 6 0",
};
const OTHER = ["M32 10l20 11v22L32 54 12 43V21zM32 32v22M32 32l20-11M32 32L12 21", "M14 16h36v32H14zM14 28h36M26 28v20", "M32 10l22 40H10z", "M20 12h24l10 20-10 20H20L10 32z"];
const COLOURS = { red: "#b3473f", amber: "#c98a26", ivory: "#cdbf98", cream: "#d3bd8a", white: "#9aa4ab", black: "#33383d", blue: "#3d6a9c", navy: "#2c4468", green: "#4b7d52", olive: "#74773b", grey: "#7b8288", gray: "#7b8288", pink: "#c57791", rose: "#c57791", teal: "#2f7f80", brown: "#7d5a3c", purple: "#71548f", yellow: "#c9a62c", orange: "#c9712c", slate: "#5b6874", silver: "#8b959c", gold: "#b08d2e" };
function art(item) {
  const words = (item.title || "").toLowerCase().split(/\s+/);
  const spin = hash(item.category || item.item_id);
  const colour = COLOURS[words.find((word) => COLOURS[word])] || `hsl(${spin % 360} 38% 42%)`;
  const path = DRAWN[(item.category || "").toLowerCase()] || OTHER[spin % OTHER.length];
  const turn = hash(item.item_id) % 7;
  const box = make("span", { class: "art", "aria-hidden": "true" });
  const svg = (tag, about, ...inside) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(about)) one.setAttribute(name, value);
    one.append(...inside);
    return one;
  };
  box.append(svg("svg", { viewBox: "0 0 96 72", preserveAspectRatio: "xMidYMid slice" },
    svg("rect", { width: 96, height: 72, fill: colour, opacity: ".13" }),
    svg("circle", { cx: 20 + turn * 9, cy: 66 - turn * 3, r: 34, fill: colour, opacity: ".13" }),
    svg("path", { d: path, transform: "translate(16 4)", fill: colour, "fill-opacity": ".22", stroke: colour, "stroke-width": "2.6", "stroke-linejoin": "round", "stroke-linecap": "round" })));
  return box;
}

const named = (item) => item.title || item.item_id;
const about = (item) => [item.brand, item.category].filter(Boolean).join(" · ");

function card(item, from, places) {
  const before = places && places.size ? places.get(item.item_id) : undefined;
  const up = before === undefined ? 0 : before - item.rank;
  const mark = !places || !places.size ? "" : before === undefined ? "new" : up > 0 ? `↑ ${up}` : "";
  const label = `${named(item)}, ${about(item)}, ${money(item.price)}. ${item.reason.text}`;
  return make("article", { class: "card" + (mark === "new" ? " fresh" : "") + (item.available === false ? " sold" : ""), "data-item": item.item_id },
    make("button", { class: "open", "aria-label": label, on: { click: () => view(item, from) } },
      art(item),
      make("span", { class: "text" },
        make("span", { class: "title" }, named(item)),
        make("span", { class: "by" }, about(item)),
        make("span", { class: "price" }, item.available === false ? "sold out" : money(item.price)),
        make("span", { class: "reason" }, item.reason.text))),
    mark ? make("span", { class: "moved" }, mark) : null,
    make("div", { class: "acts" },
      make("button", { class: "cart", on: { click: () => did("add_to_cart", item, from) }, "aria-label": `Add ${named(item)} to the basket` }, "Add to basket"),
      make("button", { on: { click: () => why(item, from) }, "aria-label": `Why is ${named(item)} here?` }, "Why?")));
}

function row(item, from) {
  return make("div", { class: "row" },
    make("button", { class: "open", "aria-label": `${named(item)}, ${money(item.price)}`, on: { click: () => view(item, from) } },
      art(item),
      make("span", {}, make("span", { class: "title" }, named(item)), make("span", { class: "reason" }, item.reason.text)),
      make("span", { class: "price" }, money(item.price))));
}

function fill(place, answer, draw) {
  place.replaceChildren(...(answer.items.length ? answer.items.map(draw) : [make("p", { class: "none" }, answer.degraded[0] || "Nothing to show here yet.")]));
}

function tell(answer) {
  const stages = Object.entries(answer.stage_ms).map(([stage, ms]) => `${stage} ${ms.toFixed(1)}`).join(", ");
  const part = (name, value) => make("span", {}, name + " ", make("b", {}, value));
  $("#state").replaceChildren(
    part("model", answer.model.version === null ? "none" : "version " + answer.model.version),
    part("variant", answer.variant || "none"),
    part("rung", answer.rung.replace("_", " ")),
    part("answered in", `${answer.ms.toFixed(0)} ms`),
    make("span", {}, stages ? `stages (ms): ${stages}` : ""),
    ...answer.degraded.map((line) => make("span", { class: "bad" }, "degraded: " + line)));
}

async function lists(since) {
  const turn = ++seen.turn;
  const [home, because, trending] = await Promise.all([
    ask(`v1/users/${user()}/recommendations?k=12`), ask(`v1/users/${user()}/because-you-viewed?k=10`), ask("v1/trending?k=10")]);
  if (turn !== seen.turn) return;
  const places = new Map(seen.home.map((id, at) => [id, at + 1]));
  fill($("#home .grid"), home, (item) => card(item, home, since === undefined ? null : places));
  fill($("#because .shelf"), because, (item) => card(item, because, null));
  fill($("#trending .shelf"), trending, (item) => card(item, trending, null));
  const anchor = because.items.find((item) => item.reason.kind === "because_you_viewed");
  $("#because-title").textContent = anchor ? anchor.reason.text : "Because you viewed";
  tell(home);
  const fresh = home.items.filter((item) => !places.has(item.item_id)).length;
  const moved = home.items.filter((item) => places.has(item.item_id) && places.get(item.item_id) !== item.rank).length;
  seen.home = home.items.map((item) => item.item_id);
  if (since === undefined) say(`${home.items.length} items for ${seen.user}.`);
  else say(`Your list knows of it after ${((performance.now() - since) / 1000).toFixed(2)} s: ${fresh} new, ${moved} moved.`);
  document.body.dataset.ready = String(turn);
}

const say = (text) => { $("#said").textContent = text; };

async function did(kind, item, from) {
  const begun = performance.now();
  const event = { user_id: seen.user, item_id: item.item_id, event_type: kind, request_id: from ? from.request_id : undefined };
  if (kind === "purchase" && item.price) event.value = item.price;
  try {
    await ask("v1/events", { events: [event] });
    if (kind === "add_to_cart") { seen.basket.set(item.item_id, item); basket(); }
    if (kind === "purchase") { seen.basket.delete(item.item_id); basket(); }
    const words = { view: "viewed", add_to_cart: "added to basket", purchase: "bought" };
    $("#visit ol").prepend(make("li", {}, make("span", {}, named(item)), make("span", { class: "quiet" }, words[kind])));
    while ($("#visit ol").children.length > 8) $("#visit ol").lastChild.remove();
    await lists(begun);
  } catch (error) { say(error.message); }
}

async function view(item, from) {
  seen.item = item;
  seen.changes.clear();
  $("#item").hidden = false;
  $("#item-title").textContent = named(item);
  $("#item .looking").replaceChildren(art(item), make("div", {},
    make("div", { class: "by" }, about(item)), make("div", { class: "price" }, money(item.price)),
    make("div", { class: "acts" },
      make("button", { class: "cart", on: { click: () => did("add_to_cart", item, from) } }, "Add to basket"),
      make("button", { on: { click: () => did("purchase", item, from) } }, "Buy now"),
      make("button", { on: { click: () => why(item, from) } }, "Why?"))));
  document.querySelectorAll(".like button").forEach((one) => one.setAttribute("aria-pressed", "false"));
  $("#item-title").focus({ preventScroll: window.innerWidth > 900 });
  const id = encodeURIComponent(item.item_id);
  await Promise.all([did("view", item, from), around(`v1/items/${id}/similar?k=5&user_id=${user()}`, "#similar"), around(`v1/items/${id}/bought-together?k=4&user_id=${user()}`, "#together")]);
}

async function around(path, place) {
  try { const answer = await ask(path); fill($(place), answer, (item) => row(item, answer)); }
  catch (error) { say(error.message); }
}

async function like(button) {
  const change = button.dataset.change, on = !seen.changes.has(change);
  if (on) seen.changes.add(change); else seen.changes.delete(change);
  button.setAttribute("aria-pressed", String(on));
  const id = encodeURIComponent(seen.item.item_id), wanted = [...seen.changes].map((one) => `change=${one}`).join("&");
  $("#similar-title").textContent = wanted ? "Like it, but " + [...seen.changes].join(" and ").replaceAll("_", " ") : "Similar";
  await around(wanted ? `v1/items/${id}/like?${wanted}&k=5&user_id=${user()}` : `v1/items/${id}/similar?k=5&user_id=${user()}`, "#similar");
}

async function basket() {
  const box = $("#basket"), items = [...seen.basket.values()];
  box.hidden = !items.length;
  $("ul", box).replaceChildren(...items.map((item) => make("li", {}, make("span", {}, named(item)),
    make("button", { on: { click: () => did("purchase", item, null) }, "aria-label": `Buy ${named(item)}` }, "Buy"))));
  if (!items.length) return;
  const answer = await ask("v1/baskets/recommendations", { item_ids: items.map((item) => item.item_id), user_id: seen.user, k: 3 });
  fill($(".rows", box), answer, (item) => row(item, answer));
}

async function why(item, from) {
  const body = $("#why .body");
  try {
    const told = await ask(`v1/requests/${encodeURIComponent(from.request_id)}/explanation`);
    const place = told.items.find((one) => one.item_id === item.item_id);
    const line = (name, value) => (value === "" || value === undefined ? [] : [make("dt", {}, name), make("dd", {}, String(value))]);
    const whole = ["full", "all"], spent = told.found ? told.answer.stage_ms : from.stage_ms;
    const stages = Object.entries(spent).filter(([stage]) => !whole.includes(stage) || Object.keys(spent).every((one) => whole.includes(one))), most = Math.max(...stages.map(([, ms]) => ms), 0.001);
    const features = place ? Object.entries(place.features).filter(([, value]) => value !== null) : [];
    body.replaceChildren(
      make("p", {}, make("b", {}, named(item)), ` is number ${item.rank}: ${item.reason.text}.`),
      make("dl", {}, ...line("proposed by", item.sources.join(", ") || "no retriever"), ...line("moved by rules", item.rules.join(", ") || "none"), ...line("score", item.score === null ? "" : item.score.toPrecision(4)),
        ...line("chance of standing here", !place ? "" : place.propensity === null ? "not known" : `${(100 * place.propensity).toFixed(1)} %`), ...line("rung", from.rung.replace("_", " ")), ...line("model", from.model.version === null ? "none" : `version ${from.model.version}, bundle ${(from.model.bundle || "").slice(0, 12)}`),
        ...line("variant", from.variant || "none"), ...line("degraded", from.degraded.join("; ") || "no"), ...line("request", from.request_id)),
      make("details", { open: "" }, make("summary", {}, `Where the time went${spent.all ? `: ${spent.all.toFixed(2)} ms in all` : ""}`),
        make("div", { class: "bars" }, ...stages.flatMap(([stage, ms]) => { const bar = make("i"); bar.style.width = `${(100 * ms) / most}%`; return [make("span", {}, stage), bar, make("span", {}, `${ms.toFixed(2)} ms`)]; }))),
      make("details", { open: features.length ? "" : null }, make("summary", {}, features.length ? `What the ranker read (${features.length})` : "What the ranker read: nothing, no ranker ordered this list"),
        features.length ? make("table", {}, ...features.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, String(Number(value.toPrecision(5))))))) : make("p", { class: "none" }, told.found ? "Nothing was kept: no ranker ordered this list." : "This answer is no longer remembered.")));
    $("#why").showModal();
  } catch (error) { say(error.message); }
}

async function become(id) {
  Object.assign(seen, { user: id, item: null, basket: new Map(), home: [] });
  $("#user").value = id;
  $("#item").hidden = $("#basket").hidden = true;
  $("#visit ol").replaceChildren();
  location.hash = encodeURIComponent(id);
  document.querySelectorAll("#some button").forEach((one) => one.setAttribute("aria-current", String(one.textContent === id)));
  try { await lists(); } catch (error) { say(error.message); }
}

async function suggest(text, limit) {
  try { return (await ask(`v1/users?limit=${limit}&starts=${encodeURIComponent(text)}`)).user_ids; } catch { return []; }
}

let waiting = 0;
$("#user").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(async () => $("#users").replaceChildren(...(await suggest($("#user").value, 12)).map((id) => make("option", { value: id }))), 150);
});
$("#who").addEventListener("submit", (event) => { event.preventDefault(); become($("#user").value.trim()); });
document.querySelectorAll(".like button").forEach((button) => button.addEventListener("click", () => like(button)));
(async () => {
  const some = [...(await suggest("", 6)), "somebody-new"];
  $("#some").replaceChildren(...some.map((id) => make("button", { on: { click: () => become(id) } }, id)));
  $("#users").replaceChildren(...some.map((id) => make("option", { value: id })));
  await become(decodeURIComponent(location.hash.slice(1)) || some[0]);
})();
