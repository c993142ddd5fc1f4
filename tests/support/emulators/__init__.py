"""Emulators of the embeddings APIs that the proxy supports."""

from collections.abc import Mapping

from tests.support.emulators.base import Emulator
from tests.support.emulators.gateways import Aigne, Apertis, Infron, NemoRouter, OpenRouter
from tests.support.emulators.hosted import Azure, Fireworks, Gemini, Nvidia, OpenAI, Together
from tests.support.emulators.makers import Cohere, Jina, Mistral, Voyage
from tests.support.emulators.servers import Infinity, LlamaCpp, LmStudio, Ollama, Tei, Vllm

_KINDS: tuple[type[Emulator], ...] = (
    Infron, OpenRouter, Apertis, Aigne, NemoRouter,
    OpenAI, Azure, Jina, Voyage, Cohere, Mistral, Together, Fireworks, Gemini, Nvidia,
    Vllm, Tei, Infinity, Ollama, LlamaCpp, LmStudio,
)  # fmt: skip

EMULATORS: Mapping[str, Emulator] = {kind.name: kind() for kind in _KINDS}
