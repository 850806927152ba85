"""`tidemark triggers list|approve|reject|fire|reset -c FILE`: the retrainings that were decided, and what people say to them.

    list [--audit]                    the launches, or what people and programs asked; from the state file
    approve LAUNCH, reject LAUNCH     answer a proposal
    fire MODEL [--force] [--dry-run]  ask for a launch without an alarm, or only how it would be answered
    reset MODEL                       the launches that brought nothing no longer count, so that the breaker closes

`list` reads the state file beside the running service. The others ask the running service over HTTP with the token of
`service.token_file`, because only its loop changes the state; they print what it did, or why not (exit code 1). A `fire`
carries a key: where the connection breaks before the answer, the same command with `--key` cannot start a second launch.
Who asks is noted as the name of the user of this machine, with `--why` as the words. Neighbours: `monitor.expose.answers`
takes what is asked, `monitor.retrain.trigger` answers.
"""

from __future__ import annotations

import argparse
import getpass
import json
import secrets
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

from monitor.commands.shared import instant, limit_lines, paragraph, print_json
from monitor.config import Config, Tls, listen_address, load, state_path
from monitor.decisions import Entry, Limit
from monitor.errors import ConfigError, TidemarkError, one_line
from monitor.expose.api import read_token
from monitor.flow import Launch
from monitor.retrain.ledger import entry_from_json, launch_from_json
from monitor.state.store import Store

#: The service answers within a turn of its loop; it gives up waiting for that after 5 seconds.
SECONDS = 15.0
ANSWER_BYTES_MAX = 262_144
OF_A_LAUNCH, OF_A_MODEL = ("approve", "reject"), ("fire", "reset")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark triggers`."""
    parser.add_argument("action", choices=("list", *OF_A_LAUNCH, *OF_A_MODEL), help="what to do")
    parser.add_argument("name", nargs="?", metavar="LAUNCH|MODEL",
                        help="the launch to approve or reject, as `list` shows it; the model to fire or reset, or to list")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--why", default="", metavar="WORDS", help="words for the audit trail")
    parser.add_argument("--by", default="", metavar="NAME", help="who asks; by default the user of this machine")
    parser.add_argument("--force", action="store_true", help="fire: set the limits of the policy aside, except one at a time")
    parser.add_argument("--dry-run", action="store_true", help="fire: only say what the answer would be")
    parser.add_argument("--key", default="", metavar="KEY", help="fire: the same key launches once for ever")
    parser.add_argument("--audit", action="store_true", help="list: what people and programs asked, instead of the launches")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """List, or ask."""
    config = load(args.config)
    _refuse_flags(args)
    if args.action == "list":
        require_model(config, args.name)
        return _list(config, args)
    if not args.name:
        what, mend = (("a model", "name one of the configuration") if args.action in OF_A_MODEL else
                      ("a launch", "`tidemark triggers list` shows them"))
        raise ConfigError(f"triggers {args.action}: expected {what}, got none; {mend}")
    if config.service.token_file is None:
        raise ConfigError(f"service.token_file: expected a token to {args.action} with, got none; set it and start again")
    body: dict[str, Any] = {"why": args.why, "by": args.by or user_name()}
    if args.action == "fire":
        require_model(config, args.name)
        key = args.key or secrets.token_hex(8)
        path, body = "/api/v1/triggers", {**body, "model": args.name, "key": key, "force": args.force, "dry_run": args.dry_run}
    elif args.action == "reset":
        require_model(config, args.name)
        path, key = f"/api/v1/monitors/{quote(args.name, safe='')}/breaker/reset", ""
    else:
        path, key = f"/api/v1/triggers/{quote(args.name, safe='')}/{args.action}", ""
    answer = ask_service(config, path, body, key)
    if args.json:
        print_json(answer)
    else:
        print_answer(answer, args.dry_run)
    return 0 if answer.get("done") is not False or args.dry_run else 1


def _refuse_flags(args: argparse.Namespace) -> None:
    """Flags that would silently do nothing."""
    for flag, action in (("force", "fire"), ("dry_run", "fire"), ("key", "fire"), ("audit", "list")):
        if getattr(args, flag) and args.action != action:
            raise ConfigError(f"--{flag.replace('_', '-')}: expected with `{action}` only, got it with `{args.action}`; "
                              "remove it")
    if args.force and not args.why:
        raise ConfigError("--force: expected --why with the words for the audit trail, got none; say why limits are set aside")


def require_model(config: Config, model: str | None) -> None:
    """ConfigError for a model that the configuration does not name."""
    names = [monitor.model for monitor in config.monitors]
    if model is not None and model not in names:
        raise ConfigError(f"expected one of the models {', '.join(names)}, got {model[:80]!r}; name one of them")


def _list(config: Config, args: argparse.Namespace) -> int:
    store = Store(state_path(config.service.state), read_only=True)
    try:
        launches = [launch_from_json(document) for document in store.history("launches", args.name)]
        entries = [entry_from_json(document) for document in store.history("audit", args.name)]
    finally:
        store.close()
    if args.json:
        print_json(entries if args.audit else launches)
    elif args.audit:
        _print_audit(entries)
    else:
        _print_launches(launches)
    return 0


def _print_launches(launches: list[Launch]) -> None:
    for launch in launches:
        verdict = f", {launch.verdict}" if launch.verdict else ""
        asked = f"asked for by {launch.by}" if launch.by else f"episode {launch.episode}"
        print(one_line(f"{launch.id}  {launch.model} {launch.version}  {asked}  {launch.state}{verdict}  "
                       f"decided at {instant(launch.decided_at)}"))
        for text in (launch.why, launch.detail, launch.progress):
            if text:
                print(one_line(f"    {text}"))
    if not launches:
        print("No retraining was decided yet.")


def _print_audit(entries: list[Entry]) -> None:
    for entry in entries:
        what = " ".join(part for part in (entry.action, entry.launch or entry.model) if part)
        done = "done" if entry.taken else "not done"
        print(paragraph(f"{instant(entry.at)}  {entry.by or 'somebody'}: {what}: {done}"))
        for text in (f"why: {entry.why}" if entry.why else "", entry.words):
            if text:
                print(paragraph(text, "    "))
    if not entries:
        print("Nobody has asked for anything yet.")


def print_answer(answer: dict[str, Any], dry_run: bool) -> None:
    """What the service answered, for people."""
    words = str(answer.get("words", ""))
    print(paragraph(f"{'dry run: ' if dry_run else ''}{words}"))
    if answer.get("limits") and (dry_run or answer.get("done") is False):
        print(limit_lines([Limit(str(one["reason"]), bool(one["holds"]), str(one["words"]))  # type: ignore[arg-type]
                           for one in answer["limits"]]))


def user_name() -> str:
    """The user of this machine; empty where it has no name."""
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):
        return ""


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Redirections are not followed: the token would go where nobody sent it."""

    def redirect_request(self, *args: Any) -> None:
        """An answer like any other."""


def _opener(tls: Tls | None) -> urllib.request.OpenerDirector:
    """What asks the service itself, past every proxy; by TLS it must show the very certificate that is configured."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _Unmoved()]
    if tls is not None:
        try:
            context = ssl.create_default_context(cafile=tls.certificate_file)
        except OSError as error:                    # SSLError is one
            raise ConfigError(f"service.tls.certificate_file: expected certificates in PEM, got {tls.certificate_file!r} "
                              f"({error.strerror}); write them there") from None
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False              # asked on this machine, by an address that it need not name
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def ask_service(config: Config, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Ask the running service; its answer."""
    assert config.service.token_file is not None
    host, port = listen_address(config.service.listen)
    # A service that listens everywhere is asked on this machine.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"{'http' if config.service.tls is None else 'https'}://{name}:{port}{path}", method="POST",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {read_token(config.service.token_file)}", "Content-Type": "application/json"})
    try:
        with _opener(config.service.tls).open(request, timeout=SECONDS) as answer:
            return dict(json.loads(answer.read(ANSWER_BYTES_MAX)))
    except urllib.error.HTTPError as error:
        try:
            said = dict(json.loads(error.read(ANSWER_BYTES_MAX)))
        except (ValueError, TypeError):
            said = {}
        if "done" in said:                          # the loop's own answer: it was not done
            return said
        known = f"; there are: {', '.join(map(str, said['known'][:10]))}" if said.get("known") else ""
        raise TidemarkError(f"{name}:{port}: {said.get('error', error.reason)}{known}") from None
    except (OSError, ValueError) as error:
        again = f"; where it was on its way, the same command with --key {key} asks for nothing twice" if key else ""
        raise TidemarkError(f"{name}:{port}: expected the running service there, got {error}; is it running?{again}") from None
