// The real `@fal-ai/client` package: the counterpart of tests/support/fal_calls.py. Its hosts are fixed, so it gets a `fetch` that
// puts Sophia's in their place.

import { createFalClient } from "@fal-ai/client";

import { answerLines } from "./lines.mjs";

const HOSTS = { "https://fal.run/": "/fal/run/", "https://queue.fal.run/": "/fal/queue/" };

function sophiaFetch(url, init) {
  const host = Object.keys(HOSTS).find((known) => url.startsWith(known));
  return fetch(`${process.env.SOPHIA_URL}${HOSTS[host]}${url.slice(host.length)}`, init);
}

const KINDS = { IN_QUEUE: "Queued", IN_PROGRESS: "InProgress", COMPLETED: "Completed" };

await answerLines(async (kind, credentials, call, app, given, seconds) => {
  const fal = createFalClient({ credentials, fetch: sophiaFetch });
  if (call === "run") {
    const abortSignal = seconds ? AbortSignal.timeout(1000 * seconds) : undefined;
    return (await fal.run(app, { input: given, abortSignal })).data;
  }
  if (call === "subscribe" || call === "stream") {
    const seen = [];
    const onQueueUpdate = (status) => seen.push(KINDS[status.status]);
    const mode = call === "stream" ? "streaming" : "polling";
    const { data } = await fal.subscribe(app, { input: given, mode, logs: true, onQueueUpdate });
    return { seen, result: data };
  }
  if (call === "submit") return (await fal.queue.submit(app, { input: given })).request_id;
  const answer = await fal.queue[call](app, { requestId: given });
  if (call === "status") return { ...answer, kind: KINDS[answer.status] };
  return call === "result" ? answer.data : null;
});
