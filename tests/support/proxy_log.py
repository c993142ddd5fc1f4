"""What the proxy has logged. On a busy machine asyncio's debug mode has things to say, too."""

import logging

import pytest


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("proxy")]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in records(caplog)]
