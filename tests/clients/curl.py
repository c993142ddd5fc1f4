"""``curl`` with the encoding format of its first argument, or ``absent``."""

import json
import subprocess
import sys

from tests.clients.loop import serve


class Failed(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status_code = status


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    body = {"model": model, "input": texts}
    if sys.argv[1] != "absent":
        body["encoding_format"] = sys.argv[1]
    command = ["curl", "--disable", "--silent", "--show-error", "--fail-with-body", "--write-out", "\n%{http_code}"]
    command += ["--header", f"Authorization: Bearer {key}", "--header", "Content-Type: application/json"]
    command += ["--data-binary", "@-", base_url + "/embeddings"]
    ended = subprocess.run(command, input=json.dumps(body).encode(), stdout=subprocess.PIPE, check=False)
    answer, _, status = ended.stdout.rpartition(b"\n")
    if ended.returncode:
        raise Failed(int(status))
    return [datum["embedding"] for datum in json.loads(answer)["data"]]


if __name__ == "__main__":
    serve(embed)
