"use strict";
// The box to try the model: one question, its answer as it comes.

const form = document.getElementById("ask");
const answer = document.getElementById("answer");
const cost = document.getElementById("cost");

let stopping = new AbortController();

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  stopping = new AbortController();
  show(true);
  say(answer, "");
  say(cost, "");
  try {
    say(cost, await answered(form.prompt.value, Number(form.limit.value)));
  } catch (error) {
    say(cost, stopping.signal.aborted ? "stopped" : error.message);
  }
  show(false);
});

form.stop.addEventListener("click", () => stopping.abort());

function show(isBusy) {
  answer.setAttribute("aria-busy", isBusy);
  form.send.disabled = isBusy;
  form.stop.disabled = !isBusy;
}

/** Writes the answer piece by piece; returns what it took, in words. */
async function answered(prompt, maxTokens) {
  const sent = performance.now();
  const call = {
    messages: [{ role: "user", content: prompt }],
    max_tokens: maxTokens,
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(call),
    signal: stopping.signal,
  });
  if (!response.ok) throw new Error(await reasonOf(response));
  let [first, tokens] = [null, 0];
  for await (const piece of events(response.body)) {
    if (piece.error) throw new Error(piece.error.message);
    first ??= performance.now();
    tokens = piece.usage?.completion_tokens ?? tokens;
    answer.append(piece.choices[0]?.delta.content ?? "");
  }
  const ttft = seconds((first - sent) / 1000);
  const tpot = seconds((performance.now() - first) / 1000 / Math.max(1, tokens - 1));
  return `${tokens} tokens; ${ttft} to the first, ${tpot} for each other one`;
}

/** The data of server-sent events, until the last one. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the answer broke off");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}
