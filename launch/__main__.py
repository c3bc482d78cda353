"""`python -m launch` is `creason`, where that command is not installed."""

from launch import cli

cli.main()
