"""The command line. Typer and rich live only here; importing this opens no connection and loads no driver."""

from __future__ import annotations


def main() -> None:
    """Entry point of `cachemig` and `python -m cachemig`."""
    from cachemig.cli.app import app

    app(prog_name="cachemig")
