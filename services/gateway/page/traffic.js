"use strict";
// The tiles: what became of requests of late, from the difference of two looks at /metrics.

const LATE_SECONDS = 15;
const HISTORY = 120; // looks

/** Prometheus' text as a map of `name{labels}` to its number. */
function samples(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const cut = line.lastIndexOf(" ");
    if (cut < 1 || line.startsWith("#")) continue;
    found.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return found;
}

/** Of all labels together. */
function total(metrics, name) {
  let sum = 0;
  for (const [key, value] of metrics) if (key === name || key.startsWith(`${name}{`)) sum += value;
  return sum;
}

/** What happened between two looks. */
class Spell {
  constructor(earlier, later) {
    this.earlier = earlier;
    this.later = later;
  }

  growth(name) {
    return total(this.later.metrics, name) - total(this.earlier.metrics, name);
  }

  rate(name) {
    return this.growth(name) / (this.later.at - this.earlier.at);
  }

  mean(histogram) {
    return this.growth(`${histogram}_sum`) / this.growth(`${histogram}_count`);
  }

  /** The bound of the histogram's bucket in which 90 % are reached. */
  most(histogram) {
    const count = this.growth(`${histogram}_count`);
    for (const key of this.later.metrics.keys()) {
      if (!key.startsWith(`${histogram}_bucket{`)) continue;
      if (count && this.growth(key) >= 0.9 * count) return Number(key.split('"')[1]);
    }
    return NaN;
  }
}

const TILES = [
  {
    name: "requests/s",
    value: (spell) => spell.rate("tandem_request_total"),
    show: amount,
    note: (spell) => {
      const refused = spell.growth("tandem_admission_rejections_total");
      return refused ? `${refused} refused` : "";
    },
  },
  {
    name: "open now",
    value: (spell) => total(spell.later.metrics, "tandem_open_requests"),
    show: amount,
    note: () => "requests being answered",
  },
  {
    name: "output tokens/s",
    value: (spell) => spell.rate("tandem_generation_tokens_total"),
    show: amount,
    note: (spell) => `${amount(spell.rate("tandem_prompt_tokens_total"))} of prompts`,
  },
  {
    name: "TTFT, mean",
    value: (spell) => spell.mean("tandem_time_to_first_token_seconds"),
    show: seconds,
    note: (spell) => within(spell.most("tandem_time_to_first_token_seconds")),
  },
  {
    name: "TPOT, mean",
    value: (spell) => spell.mean("tandem_time_per_output_token_seconds"),
    show: seconds,
    note: (spell) => within(spell.most("tandem_time_per_output_token_seconds")),
  },
];

function within(bound) {
  if (Number.isNaN(bound)) return "";
  return Number.isFinite(bound) ? `90 % within ${seconds(bound)}` : "over a minute";
}

const tiles = TILES.map((tile) => {
  const part = copyOf("tile");
  say(part.querySelector("h3"), tile.name);
  document.getElementById("tiles").append(part);
  return { ...tile, part, history: [] };
});

let looks = [];

/** Take in one more look at the counters. */
function showTraffic(text) {
  const look = { at: performance.now() / 1000, metrics: samples(text) };
  const started = (one) => one.metrics.get("process_start_time_seconds");
  if (looks.length && started(looks[0]) !== started(look)) looks = []; // another process counts
  looks.push(look);
  while (looks.length > 2 && look.at - looks[1].at > LATE_SECONDS) looks.shift();
  if (looks.length < 2) return;
  const spell = new Spell(looks[0], look);
  for (const tile of tiles) {
    const value = tile.value(spell);
    tile.history = [...tile.history, Number.isNaN(value) ? null : value].slice(-HISTORY);
    say(tile.part.querySelector("b"), tile.show(value));
    say(tile.part.querySelector("small"), tile.note(spell));
    spark(tile.part.querySelector("svg"), tile.history);
  }
}
