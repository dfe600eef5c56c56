// The real `@elevenlabs/elevenlabs-js` package: the counterpart of tests/support/elevenlabs_client.py.

import { ElevenLabsClient } from "@elevenlabs/elevenlabs-js";

import { answerLines } from "./lines.mjs";

async function audioOf(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString("base64");
}

await answerLines(async (kind, apiKey, call, fields, timeoutInSeconds) => {
  const { music } = new ElevenLabsClient({ baseUrl: `${process.env.SOPHIA_URL}/elevenlabs`, apiKey });
  const options = { timeoutInSeconds, maxRetries: 0 };
  if (call === "plan") return music.compositionPlan.create(fields, options);
  if (call === "detailed") {
    const found = await music.composeDetailed(fields, options);
    const { json, filename, songId: song } = found;
    return { audio: found.audio.toString("base64"), json, filename, song };
  }
  return audioOf(await music[call](fields, options));
});
