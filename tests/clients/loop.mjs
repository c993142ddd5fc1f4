// As loop.py, for Node.

import { createInterface } from "node:readline";

// A client that prints to people must not print among the answers.
console.log = console.info = console.debug = console.error;

/** Answer each line with what `embed({baseURL, apiKey, model, texts})` resolves to or throws. */
export async function serve(embed) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { base_url: baseURL, key: apiKey, model, texts } = JSON.parse(line);
    process.stdout.write(JSON.stringify(await answer(() => embed({ baseURL, apiKey, model, texts }))) + "\n");
  }
}

async function answer(embed) {
  try {
    return { vectors: await embed() };
  } catch (error) {
    const name = error.name === "Error" ? error.constructor.name : error.name;
    return { error: { status: error.status ?? error.statusCode ?? null, type: name } };
  }
}
