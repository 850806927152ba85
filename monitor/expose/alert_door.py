"""One Alertmanager's door: its API v2 asked over HTTP, with a token or a password, and every no in one clear line.

    door = Door("https://am.example/alertmanager", settings, context_of(settings))
    door.post(b"[]")                    # 200, or DeliveryFailed says what was expected, what came and what to do

Every call ends by CALL_SECONDS, however slowly a server answers, and `cut` ends one from another thread. A secret is
read anew for every post, so that it can be changed, and stands in no line. Redirections are not followed (a token would
go where nobody sent it), and no proxy is asked. Neighbours: `alert_sender` posts, `tidemark doctor` knocks.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from monitor.config_alerts import Alertmanager
from monitor.errors import ConfigError, TidemarkError, one_line

#: Seconds that one post may take, all in all.
CALL_SECONDS = 10.0
#: Characters of a server's own words that a log line repeats.
_WORDS = 200


class DeliveryFailed(TidemarkError):
    """A post that was not taken; its text is one line, without a secret."""


class Door:
    """Where alerts are posted.

    url : without a slash at the end        context : of `context_of`
    """

    def __init__(self, url: str, settings: Alertmanager, context: ssl.SSLContext | None) -> None:
        self.url, self._settings, self._context = url, settings, context
        self._connection: http.client.HTTPConnection | None = None

    def cut(self) -> None:
        """End the call in hand, if there is one."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:                         # it ended by itself meanwhile
                return

    def post(self, body: bytes) -> None:
        """One POST, taken with 200; DeliveryFailed says why not."""
        try:
            headers = {"content-type": "application/json", "user-agent": "tidemark", **credentials(self._settings)}
        except ConfigError as error:                # the file was there at the start, and is not now
            raise DeliveryFailed(str(error)) from None
        parts = urlsplit(self.url)
        kind: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        more: dict[str, ssl.SSLContext | None] = {}
        if parts.scheme == "https":
            kind, more = http.client.HTTPSConnection, {"context": self._context}
        connection = self._connection = kind(parts.hostname, parts.port, timeout=CALL_SECONDS, **more)
        watch = threading.Timer(CALL_SECONDS, self.cut)         # a server that drips holds no thread
        watch.daemon = True
        try:
            watch.start()
            connection.request("POST", f"{parts.path}/api/v2/alerts", body, headers)
            answer = connection.getresponse()
            said = one_line(answer.read(4_096).decode("utf-8", "replace").strip())[:_WORDS]
        except TimeoutError:
            raise DeliveryFailed(f"{self.url}: expected an answer within {CALL_SECONDS:g} s, got none; is it overloaded, or is a "
                                 "firewall between?") from None
        except ssl.SSLCertVerificationError as error:
            raise DeliveryFailed(f"{self.url}: expected a certificate that can be trusted, got one that is not "
                                 f"({one_line(error.verify_message)}); name its authority in alertmanager.ca_file") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:_WORDS]
            raise DeliveryFailed(f"{self.url}: expected an Alertmanager there, got {why}; is it running, and is this its "
                                 "address?") from None
        finally:
            watch.cancel()
            self._connection = None
            connection.close()
        if answer.status != 200:
            said = said.replace(headers.get("authorization", " ").split(" ", 1)[1] or "\0", "(a secret)")
            raise DeliveryFailed(f"{self.url}: expected an Alertmanager that takes alerts, got {answer.status}"
                                 f"{_meaning(answer.status, said)}")


def _meaning(status: int, said: str) -> str:
    """What an answer means and what to do."""
    if status == 401:
        return "; it needs another token or password: see alertmanager.token_file, or username and password_file"
    if status == 403:
        return "; this token or name may not send alerts: give it the right to"
    if status in (404, 405):
        return "; expected its API v2 below this address: give the path that it is served under (--web.route-prefix), too"
    if 300 <= status < 400:
        return ", a redirection; give the address that it leads to"
    return f" ({said or 'no reason given'}); see its log"


def credentials(settings: Alertmanager) -> dict[str, str]:
    """The header that lets us in, read from its file now; ConfigError where that cannot be used."""
    if settings.token_file is not None:
        return {"authorization": f"Bearer {_secret(settings.token_file, 'token_file')}"}
    if settings.username is not None and settings.password_file is not None:
        both = f"{settings.username}:{_secret(settings.password_file, 'password_file')}"
        return {"authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
    return {}


def _secret(path: str, name: str) -> str:
    """The text of a file without blanks around it."""
    where = f"alertmanager.{name}: expected a file with the secret, got {path!r}"
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{where} ({why}); write one, readable by this process") from None
    if not secret or not secret.isprintable() or (name == "token_file" and not secret.isascii()):
        raise ConfigError(f"{where} that is empty or holds what no header can carry; write it anew")
    return secret


def context_of(settings: Alertmanager) -> ssl.SSLContext | None:
    """How certificates are checked; None where no address is https."""
    if not any(url.startswith("https:") for url in settings.urls):
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no certificates in PEM"
        raise ConfigError(f"alertmanager.ca_file: expected a file with certificates, got {settings.ca_file!r} ({why}); "
                          "give the authority's, in PEM") from None
