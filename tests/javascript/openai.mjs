// The real `openai` package: the counterpart of tests/support/openai_client.py. The base URL comes from OPENAI_BASE_URL.

import OpenAI from "openai";

import { answerLines } from "./lines.mjs";

async function textOf(answer) {
  const pieces = [];
  for await (const piece of answer.body) pieces.push(piece);
  return Buffer.concat(pieces).toString("base64");
}

async function all(items) {
  const found = [];
  for await (const item of await items) found.push(item);
  return found;
}

await answerLines(async (kind, apiKey, call, fields, options) => {
  const client = new OpenAI({ apiKey, maxRetries: options.max_retries, timeout: options.timeout && 1000 * options.timeout });
  const { extra_body: extra, ...others } = fields;
  const body = { ...others, ...extra };
  if (call === "speech") return Buffer.from(await (await client.audio.speech.create(body)).arrayBuffer()).toString("base64");
  if (call === "speech_to_file") return textOf(await client.audio.speech.create(body));
  if (call === "models") return (await all(client.models.list())).map((model) => model.id);
  if (call === "model") return (await client.models.retrieve(fields.name)).id;
  if (call === "chat") return client.chat.completions.create(body);
  return all(client.chat.completions.create({ ...body, stream: true }));
});
