"""The flag `--config` of every command that reads the file, and the variables that these commands accept."""

from typing import Any

from proxy.cli.options.config_file import use_config_file
from proxy.cli.options.table import CONFIG, OPTIONS

# What makes click read the file before it decides the other options.
READS_CONFIG: dict[str, Any] = {"is_eager": True, "expose_value": False, "callback": use_config_file(OPTIONS)}
VARIABLES = frozenset(option.variable for option in (*OPTIONS, CONFIG))
