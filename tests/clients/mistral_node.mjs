import { Mistral } from "@mistralai/mistralai";

import { serve } from "./loop.mjs";

await serve(async ({ baseURL, apiKey, model, texts }) => {
  const client = new Mistral({ apiKey, serverURL: baseURL.replace(/\/v1$/, "") });
  const { data } = await client.embeddings.create({ model, inputs: texts });
  return data.map((datum) => datum.embedding);
});
