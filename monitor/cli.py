"""The command `tidemark`: reads the arguments, calls one command, prints one line for every error that a user can mend.

Exit codes: 0 done · 1 the work failed (source or state lost, loop not closed) · 2 wrong configuration, flag or file ·
3 drift found (`check`, `replay --fail-on-alarm`) or too many false alarms (`selftest`) · 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

from monitor.errors import CheckpointFailed, CheckpointRefused, ConfigError, ReferenceMismatch, TidemarkError, one_line

#: Command -> (what it does, the module that defines `arguments(parser)` and `run(args) -> int`). The module is named as text
#: and imported when asked for, so a command may live above this layer, as `render` does.
COMMANDS = {
    "demo": ("the whole loop on embedded parts: drift, alarm, retraining, promotion, quiet again", "monitor.demo.command"),
    "run": ("watch the models of a configuration", "monitor.commands.run"),
    "fit": ("make a reference from data that a model was accepted on", "monitor.commands.fit"),
    "check": ("compare data with a reference once; exit code 3 means drift", "monitor.commands.check"),
    "replay": ("what would have been alarmed and launched on past data, without launching", "monitor.commands.replay"),
    "selftest": ("false alarms and delays of a configuration, by simulation from its own reference", "monitor.commands.selftest"),
    "check-config": ("say in sentences what a configuration will do", "monitor.commands.check_config"),
    "explain": ("why a model is quiet, or is not", "monitor.commands.explain"),
    "report": ("the report of an alarm as one HTML file, by hand", "monitor.commands.report"),
    "triggers": ("list the retrainings that were decided; approve or reject a proposed one", "monitor.commands.triggers"),
    "rollback": ("take a model back to an earlier version, by the promotion that is configured", "monitor.commands.rollback"),
    "manifest": ("the Kubernetes object that a retraining of a model would be", "monitor.commands.manifest"),
    "render": ("rules and dashboards as files, for Prometheus and Grafana", "dashboards.command"),
    "dashboards": ("write folder, dashboards and the marks of what happened to a Grafana", "monitor.commands.dashboards"),
    "doctor": ("is everything that the configuration names reachable, and with which rights?", "monitor.commands.doctor"),
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; `{self.prog} --help` lists what there is\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """The arguments; an unknown flag is an error of its command and names the nearest one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(self._commands.choices[known.command], unknown)
        return known

    @staticmethod
    def _refuse(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        parser.error(f"expected a known argument, got {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))

    def add_commands(self) -> argparse._SubParsersAction[_Parser]:
        """The place of the commands."""
        self._commands = self.add_subparsers(dest="command", metavar="COMMAND", required=True)
        return self._commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="tidemark", description="Watch models in production; retrain when it is worth it.",
                     allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tidemark {version('tidemark')}")
    commands = parser.add_commands()
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    if wanted is not None and wanted not in COMMANDS:
        near = difflib.get_close_matches(wanted, COMMANDS, n=1)
        parser.error(f"expected one of the commands {', '.join(COMMANDS)}, got {wanted!r}"
                     + (f"; did you mean {near[0]}?" if near else ""))
    if wanted == "run":                             # its own handlers come two seconds of imports later
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ended_early)
    for name, (help_text, module) in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".",
                                  allow_abbrev=False)
        if name == wanted:                          # only the wanted command's module is imported
            importlib.import_module(module).arguments(sub)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        code = int(importlib.import_module(COMMANDS[args.command][1]).run(args))
        sys.stdout.flush()                          # a reader that went away is met here, not at the interpreter's end
        return code
    except CheckpointFailed as error:               # no mistake of the configuration: a full disk, say
        return _failed(args.command, error, 1)
    except (ConfigError, ReferenceMismatch, CheckpointRefused) as error:
        return _failed(args.command, error, 2)
    except TidemarkError as error:
        return _failed(args.command, error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _ended_early(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)                             # nothing has begun yet


def _failed(command: str, error: Exception, code: int) -> int:
    print(f"tidemark {command}: {one_line(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
