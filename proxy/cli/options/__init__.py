"""How flags, variables and the file of `--config` become settings. `table` has every option of `serve`.

What a text means belongs in `proxy.config`; what a command does with its options, in `proxy.cli`.
"""
