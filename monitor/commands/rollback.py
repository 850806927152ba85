"""`tidemark rollback MODEL [--to VERSION] -c FILE`: take a model back to an earlier version.

The running service is asked over HTTP with the token of `service.token_file`, because only its loop changes the state. It
notes the roll-back, promotes the earlier model by the promotion that is configured, and cuts over to that model's
reference at a recorded offset; `tidemark triggers list` shows how far it is. Without `--to` it is the version that the
champion replaced. Where there is nothing to go back to, one line says why, and the exit code is 1.

Neighbours: `monitor.expose.answers` takes what is asked, `monitor.retrain.promote` knows what can be gone back to.
"""

from __future__ import annotations

import argparse
from urllib.parse import quote

from monitor.commands.shared import print_json
from monitor.commands.triggers import ask_service, print_answer, require_model, user_name
from monitor.config import load
from monitor.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark rollback`."""
    parser.add_argument("model", metavar="MODEL", help="the model to take back")
    parser.add_argument("--to", default="", metavar="VERSION", help="where to; by default the version before the champion")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--why", default="", metavar="WORDS", help="words for the audit trail")
    parser.add_argument("--by", default="", metavar="NAME", help="who asks; by default the user of this machine")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Ask the running service."""
    config = load(args.config)
    require_model(config, args.model)
    if config.service.token_file is None:
        raise ConfigError("service.token_file: expected a token to roll back with, got none; set it and start again")
    answer = ask_service(config, f"/api/v1/monitors/{quote(args.model, safe='')}/rollback",
                   {"why": args.why, "by": args.by or user_name(), "version": args.to}, "")
    if args.json:
        print_json(answer)
    else:
        print_answer(answer, False)
    return 0 if answer.get("done") is not False else 1
