// The real `replicate` package: the counterpart of tests/support/replicate_calls.py.

import Replicate from "replicate";

import { answerLines } from "./lines.mjs";

async function base64Of(file) {
  return Buffer.from(await (await file.blob()).arrayBuffer()).toString("base64");
}

await answerLines(async (kind, auth, call, name, input) => {
  const replicate = new Replicate({ auth, baseUrl: `${process.env.SOPHIA_URL}/replicate/v1` });
  if (call === "run") return Promise.all((await replicate.run(name, { input })).map(base64Of));
  if (call === "create") return (await replicate.predictions.create({ model: name, input })).id;
  return (await replicate.predictions[call](name)).status;
});
