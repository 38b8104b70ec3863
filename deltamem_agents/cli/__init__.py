"""The command line: ``deltamem``, one subcommand a file."""
