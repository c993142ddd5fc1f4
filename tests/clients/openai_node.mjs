import OpenAI from "openai";

import { serve } from "./loop.mjs";

await serve(async ({ baseURL, apiKey, model, texts }) => {
  const { data } = await new OpenAI({ baseURL, apiKey }).embeddings.create({ model, input: texts });
  return data.map((datum) => datum.embedding);
});
