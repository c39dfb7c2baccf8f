"""`chipnet` as the tests call it: in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from chipnet.lab import cli

RUNNER = CliRunner()


def chipnet_(*arguments):
    """Run `chipnet ...`; a bug shows its own traceback."""
    result = RUNNER.invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def prune(out, *arguments, **changes):
    options = {"--model": "tiny:tiny_net", "--data": "digits", "--budget": "macs=0.5", "--epochs": "1"}
    options |= {"--accelerator": "cpu", "--out": out, **changes}
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    return chipnet_("prune", *given, *arguments)
