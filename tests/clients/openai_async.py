import asyncio

from openai import AsyncOpenAI

from tests.clients.loop import serve


async def create(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    async with AsyncOpenAI(base_url=base_url, api_key=key) as client:
        return [datum.embedding for datum in (await client.embeddings.create(model=model, input=texts)).data]


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    return asyncio.run(create(base_url, key, model, texts))


if __name__ == "__main__":
    serve(embed)
