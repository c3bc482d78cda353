"""How programs end. A file of its own, for `launch/cli.py` loads nothing that a list of names does not need."""

EXIT_STOPPED = 1  # a run that must not go on
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # nobody reads what is printed
