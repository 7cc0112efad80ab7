"use strict";
// A section for each pool: its blocks, shares, processes, and the controller's decisions.

const SERVICES = ["gateway", "kvstore", "prefill", "decode"];
const BLOCKS = ["referenced", "cached", "free", "quarantined"];
const SHOWN_SECONDS = 900; // in charts

const sections = new Map(); // by the pool's name
const remembered = new Map(); // decisions of each pool, by their time

function sectionOf(name) {
  if (!sections.has(name)) {
    sections.set(name, copyOf("pool"));
    document.getElementById("pools").append(sections.get(name));
  }
  return sections.get(name);
}

function showPools(pools, slo) {
  const names = new Set(pools.map((pool) => pool.pool));
  for (const [name, section] of sections) {
    if (names.has(name)) continue;
    section.remove();
    sections.delete(name);
  }
  const models = new Set(pools.map((pool) => pool.model.split("/").pop()));
  say(document.getElementById("model"), [...models].join(", "));
  for (const pool of pools) showPool(sectionOf(pool.pool), pool, kindOf(pool, pools), slo);
}

function kindOf(pool, pools) {
  const source = pools.find((other) => other.handoff_pool === pool.pool);
  if (source) return `decodes for ${source.pool}`;
  if (pool.handoff_pool) return `hands over to ${pool.handoff_pool}`;
  const isFused = pool.workers.some((worker) => worker.phases.length > 1);
  if (isFused) return "fused: each worker does both phases";
  return "semi: prefill and decode over one KV cache";
}

function showPool(section, pool, kind, slo) {
  say(named(section, "name"), pool.pool);
  say(named(section, "kind"), kind);
  say(named(section, "ready"), pool.ready ? "ready" : "not ready");
  named(section, "ready").className = pool.ready ? "yes" : "no";
  showBlocks(section, pool);
  showFacts(section, pool);
  showShares(section, pool);
  const place = (worker) => SERVICES.indexOf(worker.service);
  const processes = pool.workers.toSorted((one, other) => place(one) - place(other));
  fill(section.querySelector("[data-is=workers] tbody"), processes.map(processRow));
  showDecisions(section, pool, slo);
}

function showFacts(section, pool) {
  const { counts } = pool;
  const facts = {
    waiting: pool.waiting,
    parked: pool.parked,
    "prefix cache hits": `${(100 * pool.prefix_cache_hit_rate).toFixed(1)} %`,
    parks: counts.parks,
    adoptions: counts.adoptions,
    recoveries: counts.recoveries,
    preemptions: counts.preemptions,
  };
  const shown = Object.entries(facts);
  children(section.querySelector("dl"), "div", shown.length).forEach((part, at) => {
    const [name, value] = shown[at];
    if (!part.firstChild) part.append(make("dt"), make("dd"));
    say(part.firstChild, name);
    say(part.lastChild, typeof value === "number" ? value.toLocaleString("en") : value);
  });
}

function showBlocks(section, pool) {
  const { blocks } = pool;
  const size = `${amount(blocks.total)} of ${pool.block_size} tokens, shared by ${pool.sharing}`;
  const most = `a request has ${amount(pool.max_model_len)} tokens at most`;
  say(named(section, "size"), `${size}; ${most}`);
  const bar = section.querySelector(".bar");
  const legend = named(section, "blocks");
  const words = BLOCKS.map((state) => `${state} ${blocks[state].toLocaleString("en")}`);
  bar.setAttribute("aria-label", words.join(", "));
  children(bar, "span", BLOCKS.length).forEach((part, at) => {
    part.className = BLOCKS[at];
    part.style.flexGrow = blocks[BLOCKS[at]];
  });
  children(legend, "li", BLOCKS.length).forEach((part, at) => {
    if (!part.firstChild) part.append(make("i", BLOCKS[at]), make("span"));
    say(part.lastChild, words[at]);
  });
}

function showShares(section, pool) {
  const { shares } = pool;
  named(section, "divided").hidden = pool.shares_by === "";
  for (const phase of ["prefill", "decode"]) {
    say(named(section, phase), `${shares[phase]} %`);
    section.querySelector(`.riders .${phase}`).style.width = `${shares[phase]}%`;
  }
  const latest = decisionsOf(pool.pool).at(-1);
  const isSteered = pool.shares_by === "controller";
  const words = {
    controller: "follow the SLO" + (latest ? `; ${latest.leader} decides` : ""),
    queue: "follow the queue: nobody set any, and there is no SLO",
    people: "as a person set them, or as at the start: nobody decides",
  };
  say(named(section, "deciding"), words[pool.shares_by] ?? "");
  say(named(section, "latest"), isSteered && latest ? inWords(latest) : "");
}

function inWords(decision) {
  const isKept = decision.before === decision.shares;
  const what = isKept ? `kept at ${decision.shares}` : `${decision.before} → ${decision.shares}`;
  return `${clock(decision.at)}: ${what}, ${decision.reason}`;
}

function processRow(worker) {
  const { phases } = worker;
  const [isOfOne, isOfBoth] = [phases.length === 1, phases.length > 1];
  const step = [`${worker.percent} %`, worker.computes_on].filter(Boolean).join(": ");
  const where = `${worker.host}, pid ${worker.pid}`;
  return [
    {
      text: worker.service,
      kind: isOfOne ? phases[0] : "",
      note: isOfBoth ? phases.join(" and ") : "",
    },
    { text: worker.worker_id, note: worker.ready ? where : `${where}, not ready` },
    { text: worker.running.toLocaleString("en"), kind: "number" },
    { text: worker.waiting.toLocaleString("en"), kind: "number" },
    { text: phases.length ? step : "" },
    { text: worker.runs_on, note: worker.why_not_more },
  ];
}

/** The oldest first. */
const decisionsOf = (name) => [...(remembered.get(name) ?? new Map()).values()];

/** Take in the newest ones; false if some between them and the known ones are missing. */
function learnDecisions(name, newest, asked) {
  const known = remembered.get(name) ?? new Map();
  const isWhole = newest.length < asked || newest.some((decision) => known.has(decision.at));
  const all = new Map([...known.values(), ...newest].map((decision) => [decision.at, decision]));
  const latest = [...all.values()].sort((one, other) => one.at - other.at).slice(-MOST_DECISIONS);
  remembered.set(name, new Map(latest.map((decision) => [decision.at, decision])));
  return isWhole;
}

function showDecisions(section, pool, slo) {
  const decisions = decisionsOf(pool.pool);
  named(section, "history").hidden = decisions.length === 0;
  if (!decisions.length) return;
  const goals = [`TTFT ${seconds(slo.ttft_seconds)}`, `TPOT ${seconds(slo.tpot_seconds)}`];
  say(named(section, "goals"), `SLO of ${slo.percentile} % of requests: ${goals.join(", ")}`);
  const windows = decisions.map((decision, at) => ({ decision, before: decisions[at - 1] }));
  fill(
    section.querySelector("[data-is=decisions] tbody"),
    spells(windows).map((spell) => decisionRow(spell, slo)).reverse(),
  );
  const since = decisions.at(-1).at - SHOWN_SECONDS;
  drawDecisions(section, windows.filter(({ decision }) => decision.at >= since), slo);
}

/** Windows without requests that follow each other are one spell. */
function spells(windows) {
  const found = [];
  for (const window of windows) {
    const { decision } = window;
    const last = found.at(-1);
    const isIdle = decision.load === 0 && decision.reason === "too few requests";
    if (isIdle && last?.isIdle) {
      last.since ??= last.decision.at;
      last.decision = decision;
    } else {
      found.push({ ...window, isIdle });
    }
  }
  return found;
}

function decisionRow({ decision, before, since }, slo) {
  const { before: old, shares } = decision;
  const latency = (value, goal) => {
    if (goal === null || value <= goal) return { text: seconds(value), kind: "number" };
    return { text: `${seconds(value)} ▲`, kind: "number beyond" };
  };
  return [
    { text: clock(decision.at), note: since ? `since ${clock(since)}` : "" },
    old === shares ? { text: shares } : { text: `${old} → ${shares}`, kind: "changed" },
    { text: decision.reason },
    { text: amount(decision.load), kind: "number" },
    { text: seconds(before?.expected_ttft_seconds ?? null), kind: "number" },
    latency(decision.seen_ttft_seconds, slo.ttft_seconds),
    { text: seconds(before?.expected_tpot_seconds ?? null), kind: "number" },
    latency(decision.seen_tpot_seconds, slo.tpot_seconds),
  ];
}

function drawDecisions(section, windows, slo) {
  const over = (read) => windows.map((window) => [window.decision.at, read(window)]);
  const percent = (level) => `${Math.round(level)}`;
  const shares = ["prefill", "decode"].map((phase, side) => [
    phase,
    phase,
    windows.flatMap(({ decision: { at, before, shares } }) =>
      [before, shares].map((both) => [at, Number(both.split("/")[side])])),
  ]);
  const latest = windows.at(-1).decision;
  chart(named(section, "shares"), {
    lines: shares, goal: null, scale: PLAIN, unit: percent, label: `Shares, now ${latest.shares}`,
  });
  const latency = (name, seen, expected, goal) => {
    const lines = [
      ["expected", "predicted", over(({ before }) => before?.[expected] ?? null)],
      ["seen", "seen", over(({ decision }) => decision[seen])],
    ];
    const values = lines.flatMap(([, , points]) => points.map(([, value]) => value));
    const scale = ratios([...values, goal]);
    const label = `${name.toUpperCase()}, seen at last: ${seconds(latest[seen])}`;
    chart(named(section, name), { lines, goal, scale, unit: seconds, label });
  };
  latency("ttft", "seen_ttft_seconds", "expected_ttft_seconds", slo.ttft_seconds);
  latency("tpot", "seen_tpot_seconds", "expected_tpot_seconds", slo.tpot_seconds);
}
