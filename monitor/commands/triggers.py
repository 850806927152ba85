"""`tidemark triggers list|approve|reject [LAUNCH] -c FILE`: the retrainings that were decided, and the answer to a proposal.

`list` reads the state file beside the running service. `approve` and `reject` ask the running service over HTTP with the
token of `service.token_file`, because only its loop changes the state.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request

from monitor.commands.shared import instant, print_json
from monitor.config import listen_address, load, state_path
from monitor.errors import ConfigError, TidemarkError
from monitor.expose.api import read_token
from monitor.retrain.ledger import launch_from_json
from monitor.state.store import Store

SECONDS = 10.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark triggers`."""
    parser.add_argument("action", choices=("list", "approve", "reject"), help="what to do")
    parser.add_argument("launch", nargs="?", help="the launch to approve or reject, as `list` shows it")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """List, or answer."""
    config = load(args.config)
    if args.action != "list":
        if not args.launch:
            raise ConfigError(f"triggers {args.action}: expected a launch, got none; `tidemark triggers list` shows them")
        if config.service.token_file is None:
            raise ConfigError(f"service.token_file: expected a token to {args.action} with, got none; set it and start again")
        host, port = listen_address(config.service.listen)
        # A service that listens everywhere is asked on this machine.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        print(_asked(host, port, f"/api/v1/triggers/{args.launch}/{args.action}", read_token(config.service.token_file)))
        return 0
    store = Store(state_path(config.service.state), read_only=True)
    try:
        launches = [launch_from_json(document) for document in store.history("launches")]
    finally:
        store.close()
    if args.json:
        print_json(launches)
        return 0
    for launch in launches:
        verdict = f", {launch.verdict}" if launch.verdict else ""
        print(f"{launch.id}  {launch.model} {launch.version}  episode {launch.episode}  {launch.state}{verdict}  "
              f"decided at {instant(launch.decided_at)}" + (f"\n    {launch.detail}" if launch.detail else ""))
    if not launches:
        print("No retraining was decided yet.")
    return 0


def _asked(host: str, port: int, path: str, token: str) -> str:
    """Ask the running service; its answer in one line."""
    name = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"http://{name}:{port}{path}", method="POST", data=b"", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            noted = json.loads(answer.read(65_536))
            return f"{noted['action']} of launch {noted['launch']} noted; the service acts on it within a second"
    except urllib.error.HTTPError as error:
        try:
            said = json.loads(error.read(65_536))["error"]
        except (ValueError, KeyError):
            said = error.reason
        raise TidemarkError(f"{name}:{port}: {said}") from None
    except OSError as error:
        raise TidemarkError(f"{name}:{port}: expected the running service there, got {error}; is it running?") from None
