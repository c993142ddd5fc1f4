"""An upstream that checks credentials, and a clock."""

import pytest

from tests.support.guarded import Clock, Guarded
from tests.support.scripted import ScriptedUpstream


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guarded(upstream: ScriptedUpstream) -> Guarded:
    upstream.reply = Guarded(upstream)
    return upstream.reply
