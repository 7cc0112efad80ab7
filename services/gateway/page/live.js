"use strict";
// Looks at the gateway once a second while somebody looks at the page.

const EVERY_MS = 1000;
const PATIENCE_MS = 3000;
const FEW_DECISIONS = 10;
const MOST_DECISIONS = 100;

/** The gateway answered, but not with what was asked for. */
class Refusal extends Error {}

/** Nobody answered, or not to the end. */
class Away extends Error {}

/** What a route shows: its "json", or its "text". */
async function asked(route, kind = "json") {
  const away = () => {
    throw new Away();
  };
  const signal = AbortSignal.timeout(PATIENCE_MS);
  const response = await fetch(route, { cache: "no-store", signal }).catch(away);
  if (!response.ok) throw new Refusal(await reasonOf(response));
  return response[kind]().catch(away);
}

/** In the server's own words, if it has some. */
async function reasonOf(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The gateway answers ${response.status}.`;
}

async function look() {
  const [pools, metrics] = await Promise.all([asked("v1/pools"), asked("metrics", "text")]);
  showTraffic(metrics);
  const divided = pools.data.filter((pool) => pool.shares_by);
  const learnt = await Promise.allSettled(divided.map((pool) => lookForDecisions(pool.pool)));
  showPools(pools.data, pools.slo);
  const failed = learnt.find((one) => one.reason);
  if (failed) throw failed.reason;
}

/** Mostly one is new; all are asked for at first, and after a while unseen. */
async function lookForDecisions(name) {
  for (const limit of [FEW_DECISIONS, MOST_DECISIONS]) {
    const answer = await asked(`v1/pools/${encodeURIComponent(name)}/decisions?limit=${limit}`);
    if (learnDecisions(name, answer.data, limit)) return;
  }
}

function tell(state, text) {
  const element = document.getElementById("state");
  element.dataset.state = state;
  say(element, text);
}

async function lookAndTell() {
  try {
    await look();
    tell("live", "live");
  } catch (error) {
    if (error instanceof Refusal) tell("waiting", error.message);
    else if (error instanceof Away) tell("lost", "lost, trying again");
    else tell("lost", `this page fails; reload it (${error.message})`);
  }
}

async function untilSeen() {
  if (!document.hidden) return;
  await new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
  });
}

async function live() {
  for (;;) {
    await untilSeen();
    await lookAndTell();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

live();
