"""A progress bar for long commands, on stderr, if that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
Note = Callable[[], str | None]


@contextmanager
def progress(what: str, total: int | None, *, is_bytes: bool = False, note: Note = lambda: None) -> Iterator[Advance]:
    """A bar with the text ``what``, until the block ends. The function it yields moves the bar by a number of items, or
    of bytes. ``total`` is None if it is not known. ``note`` is asked, several times a second and by another thread, for
    what is to be shown behind the bar. If stderr is not a terminal, nothing is shown."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    # Imported only here: other commands need not wait for it.
    from rich import progress as bars  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    amount = bars.DownloadColumn(binary_units=True) if is_bytes else bars.MofNCompleteColumn()

    class NoteColumn(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(note() or "", style="yellow")

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        amount,
        bars.TimeRemainingColumn(),
        NoteColumn(Column(overflow="ellipsis", no_wrap=True, ratio=1)),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)


def _nothing(_: int) -> None:
    return None
