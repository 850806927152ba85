"""The part of the configuration that says where the service sends its alerts itself, for those without Prometheus' rules.

`monitor.config` holds the rest of the tree; the words for every field stand in `config_reference`. Secrets are files.
What single fields cannot say is refused here, before anything starts: addresses that are none, half a login, labels that
would change what an alert is. Neighbours: `monitor.expose.alert_sender` sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from monitor import alert_words
from monitor.errors import ConfigError

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Labels that the service sets itself; another value would make another alert of it.
OWN_LABELS = ("alertname", "severity", alert_words.ACTION_LABEL, "model", "version", "segment", "cause", "launcher")


class Alertmanager(Struct, forbid_unknown_fields=True, frozen=True):
    """The Alertmanagers that the service sends its alerts to itself, where no Prometheus evaluates rules."""

    urls: Annotated[list[str], Meta(max_length=8)] = field(default_factory=list)
    token_file: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    resend_seconds: Annotated[float, Meta(ge=1, le=3_600)] = 60.0
    labels: dict[str, str] = field(default_factory=lambda: {"job": alert_words.JOB})
    retrain_label: bool = False
    service_url: str | None = None
    grafana_url: str | None = None
    runbooks_url: str | None = None


def refuse_half_alertmanager(settings: Alertmanager, where: str = "alertmanager") -> None:
    """ConfigError where its fields contradict one another, or an address is none."""
    for index, url in enumerate(settings.urls):
        _refuse_no_address(url, f"{where}.urls[{index}]", "http://alertmanager:9093")
        if url.rstrip("/") in (other.rstrip("/") for other in settings.urls[:index]):
            raise ConfigError(f"{where}.urls[{index}]: expected each Alertmanager once, got {url!r} again; remove one")
    for name in ("service_url", "grafana_url", "runbooks_url"):
        if (url := getattr(settings, name)) is not None:
            _refuse_no_address(url, f"{where}.{name}", "https://grafana.example")
    _refuse_half_login(settings, where)
    for name, value in settings.labels.items():
        if not _LABEL.fullmatch(name) or name in OWN_LABELS:
            raise ConfigError(f"{where}.labels: expected a label of your own such as team, got {name!r}; take another name")
        if not value:
            raise ConfigError(f"{where}.labels.{name}: expected some text, got ''; an empty label is none: remove it")


def _refuse_half_login(settings: Alertmanager, where: str) -> None:
    given = [name for name in ("token_file", "username", "password_file", "ca_file") if getattr(settings, name) is not None]
    if given and not settings.urls:
        raise ConfigError(f"{where}.urls: expected an address beside {given[0]}, got none; add it, or remove {given[0]}")
    if settings.token_file is not None and (settings.username is not None or settings.password_file is not None):
        raise ConfigError(f"{where}.token_file: expected a token or a name with a password, got both; remove one")
    if (settings.username is None) != (settings.password_file is None):
        lacking = "password_file" if settings.password_file is None else "username"
        raise ConfigError(f"{where}.{lacking}: expected username and password_file together, got one; add the other")
    if settings.username is not None and (":" in settings.username or not settings.username.isprintable()):
        raise ConfigError(f"{where}.username: expected a name without a colon, got {settings.username!r}; mend it")
    if settings.ca_file is not None and not any(url.startswith("https:") for url in settings.urls):
        raise ConfigError(f"{where}.ca_file: expected an address that begins with https beside it, got "
                          f"{_listed(settings.urls)}; mend the address, or remove ca_file")


def _refuse_no_address(url: str, where: str, example: str) -> None:
    """An address of http or https with a host, perhaps a path, and nothing else: no login, no question, no template."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits or not re.fullmatch(r"[^\s{}\"'`?#\\]+", url) or not url.isascii():
        shown = url.split("@")[-1][:80]             # what stands before may be a password
        raise ConfigError(f"{where}: expected an address such as {example}, got {shown!r}; mend it")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: expected an address without a name and password in it; give them as username and "
                          "password_file")


def _listed(urls: Sequence[str]) -> str:
    return ", ".join(urls)
