"""``ddtrace-run`` with the openai SDK: Datadog's tracer adds header fields to every request."""

import itertools

from ddtrace.trace import Context, Span, TraceFilter, tracer
from openai import OpenAI

from tests.clients.loop import serve


class _Drop(TraceFilter):  # type: ignore[misc]  # it is of another environment
    """There is no agent to send spans to, and without one the tracer logs errors."""

    def process_trace(self, trace: list[Span]) -> None:
        return None


tracer.configure(trace_processors=[_Drop()])

# A trace's id begins with the second in which the trace began, which is what ``x-datadog-tags`` carries. Each call here
# belongs to a trace of another second, as calls of a service do, without the tests' having to wait for one.
_seconds = itertools.count(0x6B000000)


def embed(base_url: str, key: str, model: str, texts: list[str]) -> list[list[float]]:
    second = next(_seconds)
    tracer.context_provider.activate(Context(trace_id=second << 96 | second, span_id=second))
    with OpenAI(base_url=base_url, api_key=key) as client:
        return [datum.embedding for datum in client.embeddings.create(model=model, input=texts).data]


if __name__ == "__main__":
    serve(embed)
