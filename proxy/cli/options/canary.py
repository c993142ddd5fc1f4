"""The part of the table of options that is about the canary."""

import click

from proxy.cli.options import types
from proxy.cli.options.option import Option

CANARY_OPTIONS = (
    Option(
        name="canary",
        type=types.CANARY_INTERVAL,
        default="off",
        help="How often to check whether each model in use still computes the same vectors, such as `6h`. A check costs"
        " a few hundred tokens; the start banner says how many a month.",
        link="[More](docs/drift.md).",
        field="canary_interval_s",
    ),
    Option(
        name="canary-key-env",
        metavar="NAME",
        default_words="the key of --upstream-key-env",
        help="Env var holding the upstream's API key for these checks.",
        field=None,
    ),
    Option(
        name="on-drift",
        type=click.Choice(["alarm", "new-epoch"]),
        default="alarm",
        help="What to do when a model's vectors have changed: `alarm` only reports it; `new-epoch` also stops serving"
        " the entries stored before.",
    ),
)
