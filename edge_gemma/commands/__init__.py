"""The subcommands of `edge-gemma`, one file each: `add_arguments(parser)` and `run(args) -> exit status`.

Importing one is cheap; what it needs is imported when it runs.
"""
