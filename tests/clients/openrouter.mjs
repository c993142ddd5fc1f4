import { OpenRouter } from "@openrouter/sdk";

import { serve } from "./loop.mjs";

await serve(async ({ baseURL, apiKey, model, texts }) => {
  const client = new OpenRouter({ serverURL: baseURL, apiKey });
  const { data } = await client.embeddings.generate({ requestBody: { model, input: texts } });
  return data.map((datum) => datum.embedding);
});
