"""Reads files into a recording: each line parsed, identified as a proxy would, and counted."""

from collections.abc import Callable
from pathlib import Path

from proxy import input_file
from proxy.analysis import formats, models
from proxy.analysis.call import Call, Text, Unreadable, Unrelated
from proxy.analysis.formats import Format
from proxy.analysis.identifier import Identified, Identifier
from proxy.analysis.recording import Recording, RequestKind
from proxy.analysis.report import BypassCount, FileSummary, LineProblem
from proxy.analysis.token_counter import TokenCounter
from proxy.config.settings import MIB
from proxy.errors import ProxyError
from proxy.input_file import DamagedInput, InputFile
from proxy.protocol import request_body
from proxy.protocol.bypass import Bypass
from proxy.protocol.vectors import Encoding

_MAX_REASONS = 50  # per file


class Intake:
    """Texts of a corpus become requests for ``model`` of ``batch`` texts each. ``dimensions`` overrides the known
    dimensions of models. ``advanced`` is called with the bytes of each line."""

    def __init__(
        self,
        identifier: Identifier,
        counter: TokenCounter,
        *,
        model: str,
        batch: int,
        dimensions: int | None = None,
        file_format: Format | None = None,
        advanced: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._identifier = identifier
        self._counter = counter
        self.model = model
        self.batch = batch
        self._dimensions = dimensions
        self._format = file_format
        self.advanced = advanced
        self.recording = Recording()
        self.files: list[FileSummary] = []
        self.unread: list[LineProblem] = []
        self.skipped: list[LineProblem] = []
        self.assumed_dimensions: dict[str | None, int | None] = {}  # None: not known
        self.refused_requests = 0
        self._bypasses: dict[tuple[str, bool], tuple[int, int]] = {}  # by reason and whether cached whole

    @property
    def bypasses(self) -> list[BypassCount]:
        """The most frequent reason first."""
        found = [
            BypassCount(reason, requests, items, is_cached_whole)
            for (reason, is_cached_whole), (requests, items) in self._bypasses.items()
        ]
        return sorted(found, key=lambda of: of.requests, reverse=True)

    def read(self, path: Path) -> None:
        """Raises `ConfigError` for a file that can't be read at all."""
        with input_file.opened(path) as file:
            own = self._format or formats.detect(file.sample, file.name)
            _File(self, file, own).read()

    def add(self, call: Call) -> None:
        """Record a request, or why a proxy would not cache it."""
        try:
            identified = self._identifier.identify(call)
        except Bypass as bypass:
            self._count_bypass(bypass, request_body.count_items(call.fields), is_cached_whole=False)
        except ProxyError:
            self.refused_requests += 1
        else:
            self._record(identified, call)

    def _record(self, identified: Identified, call: Call) -> None:
        request = identified.request
        if request.doubt is not None:
            self._count_bypass(request.doubt, len(request.items), is_cached_whole=True)
        kind = RequestKind(
            model=request.model,
            dimensions=self._dimensions_of(call, request.model),
            reads_numbers=request.encoding is Encoding.FLOAT,
            shortest=identified.provider.uses_shortest_floats,
            is_keyed_whole=request.is_keyed_whole,
        )
        fresh = self.recording.add(kind, identified.keys, call.at_s)
        if fresh:
            count, items = self._counter.count, request.items
            self.recording.set_tokens([count(request.model, request.kind, items[position]) for position in fresh])

    def _dimensions_of(self, call: Call, model: str | None) -> int:
        requested = models.requested_dimensions(call.fields)
        if requested is not None:
            return requested
        if self._dimensions is not None:
            return self._dimensions
        if model not in self.assumed_dimensions:
            self.assumed_dimensions[model] = models.known_dimensions(model)
        return self.assumed_dimensions[model] or models.UNKNOWN_DIMENSIONS

    def _count_bypass(self, bypass: Bypass, items: int, *, is_cached_whole: bool) -> None:
        reason = bypass.reason.value, is_cached_whole
        requests, before = self._bypasses.get(reason, (0, 0))
        self._bypasses[reason] = requests + 1, before + items

    def corpus_request(self, texts: list[str]) -> Call:
        """The request that sends ``texts`` as OpenAI's SDK for Python does."""
        fields = {"input": texts, "model": self.model, "encoding_format": "base64"}
        return Call(fields)


class _File:
    """One file on its way into an `Intake`."""

    def __init__(self, intake: Intake, file: InputFile, file_format: Format) -> None:
        self._intake = intake
        self._file = file
        self._format = file_format
        self._texts: list[str] = []  # of the next request
        self._lines = self._requests = self._text_lines = 0
        self._unread: dict[str, list[int]] = {}  # reason -> lines, number of the first
        self._skipped: dict[str, list[int]] = {}

    def read(self) -> None:
        parse, take = formats.PARSERS[self._format], self._take
        try:
            for line in self._file.lines():
                self._lines += 1
                if line is None:
                    self._note(self._unread, f"longer than {input_file.MAX_LINE_BYTES // MIB} MiB")
                elif line and not line.isspace():
                    take(parse, line)
                    self._advanced(len(line) + 1)
        except DamagedInput as damage:
            self._lines += 1
            self._note(self._unread, f"{damage}; the rest of the file is not read")
        self._send_texts()
        self._report()

    def _take(self, parse: Callable[[bytes], Call | Text], line: bytes) -> None:
        try:
            found = parse(line)
            if isinstance(found, Text):
                self._add_text(found.text)
            else:
                self._add(found)
        except Unreadable as error:
            self._note(self._unread, str(error))
        except Unrelated as other:
            self._note(self._skipped, str(other))

    def _add_text(self, text: str) -> None:
        self._text_lines += 1
        self._texts.append(text)
        if len(self._texts) >= self._intake.batch:
            self._send_texts()

    def _send_texts(self) -> None:
        if self._texts:
            call = self._intake.corpus_request(self._texts)
            self._texts = []
            self._add(call)

    def _add(self, call: Call) -> None:
        self._requests += 1
        self._intake.add(call)

    def _note(self, notes: dict[str, list[int]], reason: str) -> None:
        if reason not in notes and len(notes) >= _MAX_REASONS:
            reason = "other reasons"
        notes.setdefault(reason, [0, self._lines])[0] += 1

    def _advanced(self, size_bytes: int) -> None:
        self._intake.advanced(size_bytes)

    def _report(self) -> None:
        intake, name = self._intake, self._file.name
        intake.files.append(FileSummary(name, self._format.value, self._lines, self._requests, self._text_lines))
        intake.unread += [LineProblem(name, reason, *counts) for reason, counts in self._unread.items()]
        intake.skipped += [LineProblem(name, reason, *counts) for reason, counts in self._skipped.items()]
