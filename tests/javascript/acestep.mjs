// ACE-Step's known clients as sequences of calls, with fetch and FormData as a browser has them:
//   node acestep.mjs SCENARIO URL ORIGIN [KEY]
// prints what the clients have seen as JSON. A page of ORIGIN makes the calls, so the rules of CORS hold for them.

const [scenario, url, origin, key] = process.argv.slice(2);
const SIMPLE = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];
const SONG = {
  prompt: "warm piano",
  lyrics: "",
  thinking: false,
  audio_duration: 2,
  inference_steps: 4,
  batch_size: 1,
  audio_format: "wav",
  task_type: "text2music",
  use_random_seed: false,
  seed: 7,
};

// fetch with what a browser adds: the preflight of calls that are not simple, and the check of the answer.
async function call(path, init = {}) {
  const asked = new Request(url + path, init);
  const type = (asked.headers.get("content-type") ?? "").split(";")[0];
  const unusual = [...asked.headers.keys()].filter((name) => name !== "content-type" || !SIMPLE.includes(type));
  if (unusual.length) {
    const preflight = await fetch(url + path, {
      method: "OPTIONS",
      headers: {
        Origin: origin,
        "Access-Control-Request-Method": asked.method,
        "Access-Control-Request-Headers": unusual.join(","),
      },
    });
    if (!preflight.ok || preflight.headers.get("access-control-allow-origin") !== origin) throw new TypeError("preflight refused");
    const allowed = preflight.headers.get("access-control-allow-headers").toLowerCase();
    for (const name of unusual) if (!allowed.includes(name)) throw new TypeError(`the header ${name} is not allowed`);
  }
  const answer = await fetch(url + path, { ...init, headers: { ...init.headers, Origin: origin } });
  if (answer.headers.get("access-control-allow-origin") !== origin) throw new TypeError("the page may not read the answer");
  return answer;
}

const headers = key ? { Authorization: `Bearer ${key}` } : {};
const get = (path) => call(path, { headers });
const post = (path, body, more = {}) =>
  call(path, { method: "POST", headers: { ...headers, "Content-Type": "application/json", ...more }, body: JSON.stringify(body) });
const postForm = (path, body) => call(path, { method: "POST", headers, body });

async function data(answer) {
  const envelope = await answer.json();
  if (!answer.ok || envelope.code !== 200) throw new Error(`${answer.status}: ${envelope.detail}`);
  return envelope.data;
}

// Asks until the task is done or has failed; the result is JSON text inside JSON.
async function result(task) {
  for (;;) {
    const [row] = await data(await post("/query_result", { task_id_list: [task] }));
    if (row.status !== 0) return { status: row.status, items: JSON.parse(row.result) };
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

// As <audio src> opens it: without a header, so that no page's rights are asked for.
async function play(file) {
  const answer = await fetch(file.startsWith("/") ? url + file : file);
  if (!answer.ok) throw new Error(`${answer.status} for ${file}`);
  return { type: answer.headers.get("content-type"), audio: Buffer.from(await answer.arrayBuffer()).toString("base64") };
}

async function song(answer) {
  const { task_id: task } = await data(answer);
  const { status, items } = await result(task);
  return { task, status, item: items[0], ...(items[0].file ? await play(items[0].file) : {}) };
}

function form(fields, files = {}) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, String(value));
  for (const [name, blob] of Object.entries(files)) body.append(name, blob, `${name}.wav`);
  return body;
}

const refusal = async (answer) => ({ status: answer.status, ...(await answer.json()) });

const SCENARIOS = {
  // The browser DAW: every value as text in a multipart body, a context track even for a song from words alone.
  async daw() {
    const health = await data(await call("/health"));
    const inventory = await data(await get("/v1/model_inventory"));
    const init = await data(await post("/v1/init", { model: inventory.models[0].name, slot: 1 }));
    const stats = await data(await get("/v1/stats"));
    const first = await song(await postForm("/release_task", form(SONG, { src_audio: new Blob([new Uint8Array(2000)]) })));
    const wav = new Blob([Buffer.from(first.audio, "base64")], { type: "audio/wav" });
    const cover = await song(await postForm("/release_task", form({ ...SONG, task_type: "cover" }, { src_audio: wav })));
    const path = new URL(first.item.file, url).searchParams.get("path");
    const again = await song(await postForm("/release_task", form({ ...SONG, task_type: "cover", src_audio_path: path })));
    return { health, inventory, init, stats, songs: [first, cover, again] };
  },

  // Scripts: JSON, and the result as JSON text.
  async script() {
    return { songs: [await song(await post("/release_task", SONG))] };
  },

  // A page without a header of its own: the key is a field.
  async urlencoded() {
    const body = new URLSearchParams({ ...SONG, ai_token: key });
    return { songs: [await song(await call("/release_task", { method: "POST", body }))] };
  },

  // The VST3 plug-in: local paths, and an answer that it shows.
  async refused() {
    const answers = {
      key: await post("/release_task", SONG, { Authorization: "Bearer wrong" }),
      model: await post("/release_task", { ...SONG, model: "none" }),
      input: await post("/release_task", { ...SONG, audio_duration: 900 }),
      path: await post("/release_task", { ...SONG, reference_audio_path: "/home/me/a.wav" }),
    };
    for (let count = 0; count < 9 && !(answers.limit?.ok === false); count++) {
      answers.limit = await post("/release_task", { ...SONG, model: "asleep" });
    }
    const told = await Promise.all(Object.entries(answers).map(async ([name, answer]) => [name, await refusal(answer)]));
    return Object.fromEntries(told);
  },

  // A running task is cancelled by the call that some forks have.
  async cancelled() {
    const { task_id: task } = await data(await post("/release_task", { ...SONG, inference_steps: 200 }));
    for (let running = false; !running; ) {
      const [row] = await data(await post("/query_result", { task_id_list: [task] }));
      running = JSON.parse(row.result)[0].progress > 0;
    }
    const answer = await data(await post("/cancel_task", { task_id: task }));
    return { answer, ...(await result(task)) };
  },
};

console.log(JSON.stringify(await SCENARIOS[scenario]()));
