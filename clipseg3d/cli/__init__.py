"""The command line: arguments in, messages out; one file per command."""
