"""Emulators of the embeddings APIs that the proxy is made for."""

from collections.abc import Mapping

from tests.emulators.base import Emulator
from tests.emulators.gateways import OpenRouter
from tests.emulators.hosted import Azure, Jina, OpenAI, Voyage
from tests.emulators.servers import Tei

_ALL: tuple[Emulator, ...] = (OpenRouter(), OpenAI(), Azure(), Jina(), Voyage(), Tei())

EMULATORS: Mapping[str, Emulator] = {emulator.name: emulator for emulator in _ALL}
