// An answer as it comes. A stream that breaks is gone on with behind its last event, on whichever server answers then.
import { Refused } from "./session.js";

/** Heartbeats come every three seconds; a stream that is silent for so long is dead, whatever the network says. */
const SILENCE_MS = 15_000;
const PAUSES_MS = [300, 1_000, 2_000, 4_000, 8_000, 8_000, 15_000, 15_000, 30_000];

/** The events of one response. */
async function* read(response, touch) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      touch();
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const event = { id: null, name: "message", data: "" };
        for (const line of rest.slice(0, end).split("\n")) {
          if (line.startsWith("id: ")) event.id = line.slice(4);
          else if (line.startsWith("event: ")) event.name = line.slice(7);
          else if (line.startsWith("data: ")) event.data += line.slice(6);
        }
        rest = rest.slice(end + 2);
        if (event.data !== "") yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = () => { clearTimeout(timer); window.removeEventListener("online", done); signal.removeEventListener("abort", done); resolve(); };
    const timer = setTimeout(done, milliseconds);
    window.addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}

/**
 * Follows an answer to its end. `open(signal)` makes the first request: the question, or listening to an answer that is
 * under way. `handle` has `started`, `delta`, `done`, `error` and `reconnecting`; when this returns, one of `done` and
 * `error` was called. What was refused before anything began is thrown.
 */
export async function follow(session, messageId, open, handle, signal) {
  let last = null;
  let attempt = 0;
  for (let first = true; ; first = false) {
    const watch = new AbortController();
    const give = () => watch.abort();
    signal.addEventListener("abort", give);
    let timer = setTimeout(give, SILENCE_MS * 4);
    const touch = () => { clearTimeout(timer); timer = setTimeout(give, SILENCE_MS); };
    try {
      const response = first ? await open(watch.signal) : await session.request(`/api/v1/chat/${messageId}/events`, {
        headers: last === null ? {} : { "last-event-id": last }, signal: watch.signal,
      });
      touch();
      for await (const event of read(response, touch)) {
        attempt = 0;
        if (event.data === "[DONE]") continue;
        const data = JSON.parse(event.data);
        if (event.id !== null) last = event.id;
        if (event.name === "started") { messageId = data.message_id; handle.started(data); }
        else if (event.name === "done") return handle.done(data);
        else if (event.name === "error") return handle.error(data);
        else if (typeof data.content === "string") handle.delta(data.content);
      }
    } catch (error) {
      if (signal.aborted) return undefined;
      const final = error instanceof Refused && ![502, 503, 504, 429].includes(error.status);
      if (messageId === null || final) throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", give);
    }
    if (signal.aborted) return undefined;
    if (messageId === null || attempt >= PAUSES_MS.length) throw new TypeError("the stream broke off");
    handle.reconnecting();
    await pause(PAUSES_MS[attempt], signal);
    attempt += 1;
  }
}
