// Answers each line of the input, a JSON list, with a line: what `call` returned for it, or the exception that it threw.

import { createInterface } from "node:readline";

console.log = console.error; // some packages print to the output, which belongs to the answers

export async function answerLines(call) {
  for await (const line of createInterface({ input: process.stdin })) {
    let answer;
    try {
      answer = { result: await call(...JSON.parse(line)) };
    } catch (error) {
      answer = {
        error: error.constructor.name,
        status: error.statusCode ?? error.status ?? error.response?.status ?? null,
        text: `${error.message} ${JSON.stringify(error.body ?? "")}`,
      };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}
