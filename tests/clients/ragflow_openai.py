"""What RAGFlow's ``OpenAIEmbed`` sends (rag/llm/embedding_model.py): ``drop_params`` is for a LiteLLM gateway."""

from openai import OpenAI

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    with OpenAI(base_url=base_url, api_key=key) as client:
        response = client.embeddings.create(
            model=model, input=texts, encoding_format="float", extra_body={"drop_params": True}
        )
        return [datum.embedding for datum in response.data]


if __name__ == "__main__":
    serve(embed)
