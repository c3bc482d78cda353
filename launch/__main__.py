"""`python -m launch` does the same as `creason`, for when that command is not installed."""

from launch import cli

cli.main()
