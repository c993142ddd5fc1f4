"use strict";
const PERIOD_MS = 2000, TIMEOUT_MS = 5000, STEPS = 61, NONE = "–";
const OUTCOMES = ["hit", "partial", "miss", "bypass", "error"];
const BAD_VERDICTS = ["failed", "drifted", "other-model", "dimensions"];
const SOURCES = {
  memory: "memory", store: "store", duplicate: "duplicate in its request", joined: "joined another's fetch",
  upstream: "asked upstream", bypass: "relayed uncached",
};
const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});

const count = (n) => (n < 1e6 ? whole : short).format(n);
const share = (part) => part === null ? NONE : `${(Math.floor(part * 1000 + 1e-9) / 10).toFixed(1)} %`;
const money = (n) => n === undefined ? NONE : n.toLocaleString("en", {minimumFractionDigits: 2, maximumFractionDigits: n < 1 ? 4 : 2});
const tiny = (n) => n ? n.toExponential(1) : "0";
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (bytes >= 1024 && i < units.length - 1) { bytes /= 1024; i++; }
  return `${bytes.toFixed(i && bytes < 100 ? 1 : 0)} ${units[i]}`;
}
function brief(s) {
  if (s < 1) return `${Number((s * 1000).toPrecision(2))} ms`;
  return s < 100 ? `${Number(s.toPrecision(2))} s` : `${Math.round(s)} s`;
}
const took = (s, limit) => s === null ? NONE : (s >= limit ? "≥ " : "") + brief(s);
function lasting(s) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([unit]) => s >= unit);
  if (at < 0) return "0 s";
  return parts.slice(at, at + 2).map(([unit, name], i) => `${Math.floor((i ? s % parts[at][0] : s) / unit)} ${name}`).join(" ");
}
const usedAt = (s) => s === null ? NONE : new Date(s * 1000).toLocaleTimeString("en", {hour12: false});
const spell = (s) => s >= 119 ? `${Math.round(s / 60)} minutes` : `${Math.round(s)} seconds`;

// Sets text, never markup: clients choose the names of models. An unchanged text is not set again, to keep a selection.
function setText(element, text) { if (element.textContent !== text) element.textContent = text; }
function make(name, className) {
  const element = document.createElement(name);
  if (className) element.className = className;
  return element;
}
/** `rows` have a name, then cells: a text or `{text, kind, fill}`. `placeholder` is shown if there are no rows. */
function table(id, rows, placeholder) {
  const body = $(id).tBodies[0];
  const shape = JSON.stringify(rows.map((row) => row.map((cell) => cell.kind || "number")));
  if (body.dataset.shape !== shape) {
    body.dataset.shape = shape;
    body.replaceChildren(...rows.map((row) => {
      const line = make("tr");
      row.forEach((cell, i) => {
        const field = make(i ? "td" : "th", i ? cell.kind || "number" : "");
        if (!i) field.scope = "row";
        if (cell.fill !== undefined) field.appendChild(make("span", "share")).appendChild(make("i"));
        line.append(field);
      });
      return line;
    }));
    if (!rows.length) {
      const field = make("td", "none");
      field.colSpan = $(id).tHead.rows[0].cells.length;
      field.textContent = placeholder;
      body.insertRow().append(field);
    }
  }
  rows.forEach((row, r) => row.forEach((cell, c) => {
    const field = body.rows[r].cells[c];
    if (cell.fill !== undefined) field.querySelector("i").style.width = `${cell.fill * 100}%`;
    else setText(field, cell.text ?? cell);
  }));
}
function tiles(figures) {
  const list = $("tiles");
  if (list.children.length !== figures.length) {
    list.replaceChildren(...figures.map(() => {
      const tile = make("div");
      tile.append(make("dt"), make("dd", "big"), make("dd", "small"));
      return tile;
    }));
  }
  figures.forEach((texts, i) => texts.forEach((text, j) => setText(list.children[i].children[j], text)));
}

function chart(steps) {
  const most = Math.max(1, ...steps.map((step) => step.from_cache + step.asked));
  const bars = steps.flatMap((step, i) => {
    const x = (STEPS - steps.length + i) * 10, cached = step.from_cache * 96 / most, asked = step.asked * 96 / most;
    return [["cache", x, 100 - cached, cached], ["asked", x, 100 - cached - asked, asked]];
  }).filter(([, , , height]) => height);
  $("chart").replaceChildren(...bars.map(([kind, x, y, height]) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    bar.setAttribute("class", kind);
    for (const [name, value] of Object.entries({x: x + 1, y, width: 8, height})) bar.setAttribute(name, value);
    return bar;
  }));
  const cached = steps.reduce((sum, step) => sum + step.from_cache, 0);
  const all = steps.reduce((sum, step) => sum + step.from_cache + step.asked, 0);
  setText($("chart-most"), all ? `most: ${count(most)}` : "no items yet");
  $("chart").setAttribute("aria-label", `In the last ten minutes ${count(all)} items, ${count(cached)} of them from the cache; at most ${all ? count(most) : 0} in 10 seconds`);
}

function limited({model, held_s, calls_per_s}) {
  const since = new Date(Date.now() - held_s * 1000).toLocaleTimeString();
  return `${model}: ${held_s ? `held by the upstream's limit since ${since}, ` : ""}`
    + (calls_per_s === null ? "limit unknown" : `limit ${Number(calls_per_s.toPrecision(2))} calls/s`);
}

let last = null;
function windowed() {
  const chosen = last[document.querySelector("input[name=window]:checked").value];
  table("latency", OUTCOMES.map((outcome) => {
    const of = chosen.latency[outcome];
    return [outcome, count(of.count), ...[of.p50_s, of.p95_s, of.p99_s].map((s) => took(s, of.limit_s))];
  }));
  const all = Object.values(chosen.items).reduce((sum, n) => sum + n, 0);
  table("items", Object.entries(SOURCES).map(([result, name]) => {
    const n = chosen.items[result] || 0, part = all ? n / all : 0;
    return [name, count(n), share(all ? part : null), {kind: "number wide", fill: part}];
  }));
}

function show(status) {
  last = status;
  const {recent, since_start: ever, load, memory, store} = status;
  const requests = (of) => Object.values(of.requests).reduce((sum, n) => sum + n, 0);
  const priced = Object.keys(ever.cost).length > 0;
  setText($("about"), `${status.version} · up ${lasting(status.uptime_s)} · ${status.base_url}`);
  setText($("recent-for"), spell(recent.seconds));
  setText($("window-for"), spell(recent.seconds));
  tiles([
    ["Items from cache", share(recent.item_hit_rate), `${share(ever.item_hit_rate)} since start`],
    ["Requests from cache", share(recent.request_hit_rate), `${share(ever.request_hit_rate)} since start`],
    ["Tokens saved", count(recent.tokens.saved || 0), `${count(ever.tokens.saved || 0)} since start`],
    ...(priced ? [["Money saved", money(recent.cost.saved || 0), `${money(ever.cost.saved || 0)} since start`]] : []),
    ["Requests", count(requests(recent)), `${count(requests(ever))} since start`],
    ["In flight", count(load.requests_in_flight), `${count(load.queued_items)} items queued`],
  ]);
  chart(status.history);
  windowed();
  for (const column of $("models").querySelectorAll(".money")) column.hidden = !priced;
  table("models", status.models.map((model) => [
    model.name, count(model.items), share(model.item_hit_rate), count(model.tokens.saved || 0),
    {text: count(model.tokens.billed || 0), kind: "number wide"}, ...(priced ? [{text: money(model.cost.saved), kind: "number wide"}] : []),
  ]), "No model has responded yet.");
  $("clients-section").hidden = !status.clients.length;
  for (const column of $("clients").querySelectorAll(".money")) column.hidden = !priced;
  table("clients", status.clients.slice(0, 10).map((client) => [
    client.name, count(requests(client)), share(client.item_hit_rate), count(client.tokens.saved || 0), count(client.tokens.billed || 0),
    ...(priced ? [{text: money(client.cost.billed), kind: "number wide"}] : []),
    {text: count(client.requests.bypass || 0), kind: "number wide"}, {text: usedAt(client.last_used_s), kind: "number wide"},
  ]), "No client has sent a request yet.");
  $("budgets-section").hidden = !status.budgets.length;
  table("budgets", status.budgets.slice(0, 10).map((budget) => {
    const used = budget.spent / budget.limit, write = budget.unit === "money" ? money : count;
    return [budget.name, {text: budget.client, kind: "text"}, {text: share(used), kind: used >= 0.8 ? "number bad" : "number"},
      {text: write(budget.spent), kind: "number wide"}, {text: write(budget.limit), kind: "number wide"}, count(budget.refused)];
  }), "No budget has been used.");
  $("uncached-section").hidden = !status.uncached.length;
  table("uncached", status.uncached.slice(0, 10).map((each) => [
    each.field === each.reason ? each.reason : `${each.reason} ${each.field}`.trim(), count(each.requests), {text: each.client || NONE, kind: "text"}, {text: each.user_agent || NONE, kind: "text"},
  ]), "All requests can be cached.");
  table("upstreams", status.upstreams.map((upstream) => [
    [upstream.name, upstream.base_url === "http://demo-2.invalid/v1" ? "built in" : upstream.base_url, ...upstream.models,
      ...upstream.rate_limits.map(limited)].join(" · "),
    count(upstream.calls), {text: count(upstream.failed), kind: upstream.failed ? "number bad" : "number"},
    ...["p50_s", "p99_s"].map((q) => upstream.latency ? took(upstream.latency[q], upstream.latency.limit_s) : NONE),
  ]));
  $("canary-section").hidden = !status.canary.length;
  table("canary", status.canary.map((own) => [
    `${own.model} · ${own.upstream}`, {text: own.verdict, kind: BAD_VERDICTS.includes(own.verdict) ? "number bad" : "number"},
    tiny(own.distance), {text: tiny(own.noise), kind: "number wide"},
    {text: share(own.changed), kind: "number wide"}, {text: count(own.epoch), kind: "number wide"},
    {text: own.measured_at_s ? new Date(own.measured_at_s * 1000).toLocaleString() : NONE, kind: "number wide"},
  ]));
  table("breakers", Object.entries(status.breakers).map(([circuit, state]) => [
    circuit, state === "closed" ? "closed, all well" : {text: `${state}, ${state === "open" ? "failing" : "trying"}`, kind: "number bad"},
  ]));
  table("store", [["read", store.reads], ["write", store.writes]].map(([name, of]) => [
    name, count(of.count), took(of.p50_s, of.limit_s), took(of.p99_s, of.limit_s),
  ]));
  setText($("store-note"), `${store.url} · ${count(store.errors)} errors · ${count(store.invalid_records)} invalid records`
    + (store.forged_records ? `, ${count(store.forged_records)} of them forged` : ""));
  table("process", [
    ["memory tier", `${size(memory.bytes)} of ${size(memory.limit_bytes)}`],
    ["entries in it", count(memory.entries)],
    ["requests and responses", size(load.held_bytes)],
    ["event loop late, p99", took(load.loop_lag.p99_s, load.loop_lag.limit_s)],
  ]);
  $("numbers").hidden = false;
}

let lostAt = null, timer = null, asking = false;
function state(text, isBad) {
  setText($("state"), text);
  $("state").className = isBad ? "bad" : "";
}
async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  let status = null;
  try {
    const response = await fetch("status.json", {cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS)});
    if (response.ok) status = await response.json();
  } catch { /* shown below, with the time */ }
  asking = false;
  timer = setTimeout(poll, PERIOD_MS);
  if (status) {
    lostAt = null;
    show(status);
    const troubles = Object.entries(status.breakers).filter(([, state]) => state !== "closed").map((pair) => pair.join(" is "));
    for (const own of status.canary) {
      if (BAD_VERDICTS.includes(own.verdict)) troubles.push(`${own.model}: ${own.verdict}`);
    }
    for (const {name, rate_limits} of status.upstreams) {
      if (rate_limits.some((limit) => limit.held_s)) troubles.push(`requests wait for the rate limit of ${name}`);
    }
    if (status.is_draining) troubles.unshift("stopping: not ready, finishing what is under way");
    state(["Live", ...troubles].join("; "), troubles.length > 0);
  } else {
    lostAt ??= new Date().toLocaleTimeString();
    state(`The proxy can't be reached since ${lostAt}; ${last ? "these numbers are older. " : ""}Trying again`, true);
  }
}
document.addEventListener("visibilitychange", poll);
for (const choice of document.querySelectorAll("input[name=window]")) choice.addEventListener("change", windowed);
poll();
