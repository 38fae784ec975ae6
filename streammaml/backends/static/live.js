// The summary, pushed about once a second. Where the server has no place for one page more, it is
// asked for instead; where there is no answer, again and again until there is one.

const RETRY_MS = 1000;
const POLL_MS = 2000;
const POLLS = 10; // then the stream is tried again
const SILENCE_MS = 6000;

// `show` gets each summary and whether its process is a new one, `away` is called without answer.
export function follow(show, away) {
  let stream = null, timer = 0, silence = 0, process = null;

  function arrived(summary) {
    const restarted = process !== null && process !== summary.process;
    process = summary.process;
    show(summary, restarted);
  }

  function listen() {
    stream = new EventSource("events");
    const watch = () => {
      clearTimeout(silence);
      silence = setTimeout(lost, SILENCE_MS);
    };
    watch();
    stream.onmessage = (event) => { watch(); arrived(JSON.parse(event.data)); };
    stream.onerror = lost;
  }

  function lost() {
    stop();
    poll(POLLS);
  }

  async function poll(left) {
    let wait = RETRY_MS;
    try {
      const answer = await fetch("api/summary", { signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(answer.status);
      const summary = await answer.json();
      if (document.hidden) return;
      arrived(summary);
      wait = POLL_MS;
    } catch {
      away();
      left = 0; // a process that comes back has places
    }
    timer = setTimeout(left > 0 && wait === POLL_MS ? () => poll(left - 1) : retry, wait);
  }

  function retry() {
    stop();
    if (!document.hidden) listen();
  }

  function stop() {
    stream?.close();
    stream = null;
    clearTimeout(timer);
    clearTimeout(silence);
  }

  // A page that nobody sees gives its place away.
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : retry()));
  listen();
}
