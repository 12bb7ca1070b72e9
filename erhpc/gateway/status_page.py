"""The page /status: what /status.json says, for people, drawn anew every second.

One text without anything from elsewhere: it works on a machine without internet, through an SSH tunnel. Names are set
as text, never as markup. It has an empty icon, or browsers would ask for one and count as a refused request.
"""

from __future__ import annotations

STATUS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>erhpc gateway</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c0392b; --good: #1e8449; --warn: #b9770e; }
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
  h1 { font-size: 1.35rem; margin: 0 0 .2rem; }
  h2 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
  th { font-weight: 600; opacity: .75; }
  th:first-child, td:first-child { text-align: left; }
  #tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin-top: 1rem; }
  .tile { background: var(--soft); border-radius: .5rem; padding: .5rem .9rem; min-width: 7.5rem; }
  .tile b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
  .up { color: var(--good); } .down { color: var(--bad); } .draining { color: var(--warn); }
  #mark { background: var(--warn); color: #fff; padding: .3rem .8rem; border-radius: .4rem; display: inline-block; }
  #trouble { color: var(--bad); min-height: 1.4em; }
  [hidden] { display: none !important; }
</style>
</head>
<body>
<h1>erhpc gateway</h1>
<div id="since"></div>
<p id="mark" hidden>EMULATED experts: nothing here was measured on a model.</p>
<p id="trouble" role="status"></p>
<div id="tiles"></div>
<h2>Replicas</h2>
<table id="replicas"></table>
<h2>Times</h2>
<table id="times"></table>
<h2>Processes</h2>
<table id="processes"></table>
<script>
"use strict";
const TIMES = {
  erhpc_queue_seconds: "wait for a turn", erhpc_classify_seconds: "classify",
  erhpc_forward_seconds: "received to sent on", erhpc_first_write_seconds: "first token to client",
  erhpc_loop_lag_seconds: "event loop late by",
};
let before = null;
const byId = (id) => document.getElementById(id);
function cell(row, text, kind) {
  const made = document.createElement(kind || "td");
  made.textContent = text;
  row.append(made);
  return made;
}
function table(id, heads, rows) {
  const head = document.createElement("tr");
  heads.forEach((text) => cell(head, text, "th"));
  const made = rows.map((values) => {
    const row = document.createElement("tr");
    values.forEach((value) => {
      if (Array.isArray(value)) cell(row, value[0]).className = value[1]; else cell(row, value);
    });
    return row;
  });
  byId(id).replaceChildren(head, ...made);
}
function seconds(value) {
  if (value === null) return "-";
  if (value < 0.001) return (value * 1e6).toFixed(0) + " us";
  return value < 1 ? (value * 1e3).toPrecision(3) + " ms" : value.toFixed(1) + " s";
}
function duration(value) {
  const whole = Math.floor(value), pad = (number) => String(number).padStart(2, "0");
  return Math.floor(whole / 3600) + ":" + pad(Math.floor(whole / 60) % 60) + ":" + pad(whole % 60);
}
function tile(label, value) {
  const made = document.createElement("div"), number = document.createElement("b");
  made.className = "tile";
  number.textContent = value;
  made.append(number, label);
  return made;
}
function draw(now) {
  const ended = Object.values(now.outcomes).reduce((sum, value) => sum + value, 0);
  const rate = before ? (ended - before.ended) / (now.up_s - before.up_s) : null;
  before = { ended, up_s: now.up_s };
  byId("mark").hidden = !now.is_emulated;
  byId("since").textContent = "up for " + duration(now.up_s);
  const failed = ["unreachable", "broken", "silent", "lost", "no_replica"].reduce(
    (sum, name) => sum + (now.outcomes[name] || 0), 0);
  byId("tiles").replaceChildren(
    tile("in the gateway", now.admitted), tile("waiting", now.queued),
    tile("ended per second", rate === null ? "-" : rate.toFixed(1)), tile("ended", ended),
    tile("failed", failed), tile("turned away", now.outcomes.overloaded || 0), tile("retries", now.retries));
  table("replicas", ["replica", "expert", "state", "in flight", "answered", "cancelled", "failed"],
    now.replicas.map((one) => [one.name, one.expert, [one.state, one.state], one.in_flight, one.answered,
      one.cancelled, one.failed]));
  table("times", ["", "mean", "half within", "99 % within", "number"],
    Object.entries(now.times).map(([name, one]) =>
      [TIMES[name] || name, seconds(one.mean_s), seconds(one.p50_s), seconds(one.p99_s), one.number]));
  table("processes", ["process", "in it", "waiting", "last seen"],
    now.processes.map((one, number) => [number, one.admitted, one.queued,
      one.seen_s_ago === null ? "not yet" : seconds(one.seen_s_ago) + " ago"]));
}
async function refresh() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    draw(await answer.json());
    byId("trouble").textContent = "";
  } catch (error) {
    byId("trouble").textContent = "The gateway does not answer (" + error.message + "); what is shown is old.";
  }
  setTimeout(refresh, 1000);
}
refresh();
</script>
</body>
</html>
"""
