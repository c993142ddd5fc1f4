import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany } from "ai";

import { serve } from "./loop.mjs";

await serve(async ({ baseURL, apiKey, model, texts }) => {
  const provider = createOpenAICompatible({ name: "proxy", baseURL, apiKey });
  const { embeddings } = await embedMany({ model: provider.embeddingModel(model), values: texts });
  return embeddings;
});
