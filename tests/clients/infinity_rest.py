"""Infinity's own generated client. It sends its defaults too: ``"dimensions": 0`` and ``"modality": "text"``."""

from infinity_client import AuthenticatedClient
from infinity_client.api.default import embeddings
from infinity_client.models import OpenAIEmbeddingInputText

from tests.clients.loop import serve


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    # By default it answers None to a status that its description does not have.
    with AuthenticatedClient(base_url=base_url, token=key, raise_on_unexpected_status=True) as client:
        answer = embeddings.sync(client=client, body=OpenAIEmbeddingInputText(input_=texts, model=model))
        return [datum.embedding for datum in answer.data]


if __name__ == "__main__":
    serve(embed)
