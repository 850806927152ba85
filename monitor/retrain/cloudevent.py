r"""CloudEvents 1.0 that say what is asked of another program: train, stop, deploy, take back; signed.

Structured mode: the whole event is the body, so that the signature covers its type, too, and not only its data. The
signature is that of the Standard Webhooks convention, for which there are verifying libraries in most languages:

    webhook-id         the event's id; the same event sent again has the same id, and is one request
    webhook-timestamp  seconds since 1970 at which it was sent: a receiver refuses what is minutes old, against replay
    webhook-signature  v1,BASE64(HMAC-SHA256(secret, "{webhook-id}.{webhook-timestamp}.{body}"))

`source` and `id` together are an event's identity; Knative's JobSink makes labels of both, so a source without slashes
fits there. An event asked for twice is the same bytes, since its time is that of the step that asked for it; only the
time and signature of sending differ. Cost: nothing to speak of. Neighbours: `launchers.webhook` and
`promotions.webhook` send them through `launchers.rest`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from monitor.config import RestServer
from monitor.errors import ConfigError, LaunchFailed
from monitor.retrain.launchers.rest import Door, Reply, read_secret

#: Beyond this no one in between has to forward an event.
EVENT_BYTES_MAX = 65_536
SECRET_MIN = 16
#: Taken, done, nothing to say, and "I have this one already".
ACCEPTED = (200, 201, 202, 204, 409)


class Sender:
    """Sends events to one webhook, signed where there is a secret.

    server : its node of the configuration      path : where that stands in the file      what : its name in messages
    """

    def __init__(self, server: RestServer, *, secret_file: str | None, source: str, path: str, what: str) -> None:
        self.door = Door(server, path=path, what=what)
        self._secret_file, self._source, self._path = secret_file, source, path
        if secret_file is not None:
            signing_key(secret_file, f"{path}.secret_file")

    def send(self, kind: str, name: str, subject: str, at: float, data: Mapping[str, object], *,
             also: Collection[int] = (), patient: bool = False) -> Reply:
        """Send one event; sending it again is the same event.

        kind : its type, `dev.tidemark....`      name : its id      at : wall-clock seconds of what it tells
        also : further answers that are a success
        Raises LaunchFailed as `Door.call` does.
        """
        content = json.dumps({
            "specversion": "1.0", "type": kind, "source": self._source, "id": name, "subject": subject,
            "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json", "data": dict(data)}, allow_nan=False).encode()
        if len(content) > EVENT_BYTES_MAX:
            raise LaunchFailed(f"{self._path}: expected an event of at most {EVENT_BYTES_MAX:,} bytes, got {len(content):,}; "
                               "watch fewer columns, or use another launcher")
        headers = {"Content-Type": "application/cloudevents+json; charset=utf-8", "Idempotency-Key": name}
        if self._secret_file is not None:
            try:
                key = signing_key(self._secret_file, f"{self._path}.secret_file")
            except ConfigError as error:            # it was there at the start: it may be in the middle of a rotation
                raise LaunchFailed(str(error), retry=True) from None
            headers |= signature(key, name, int(time.time()), content)
        return self.door.call("POST", "", content=content, headers=headers, expected=(*ACCEPTED, *also),
                              patient=patient)


def signing_key(file: str, where: str) -> bytes:
    """The key in a file: the bytes behind `whsec_` in base64, else the text itself; ConfigError for a short one."""
    text = read_secret(file, where)
    key = text.encode()
    if text.startswith("whsec_"):
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ConfigError(f"{where}: expected base64 after whsec_, got something else; write the secret again") from None
    if len(key) < SECRET_MIN:
        raise ConfigError(f"{where}: expected a secret of at least {SECRET_MIN} bytes, got {len(key)}; make one with "
                          "`openssl rand -hex 32`")
    return key


def signature(key: bytes, name: str, at: int, content: bytes) -> dict[str, str]:
    """The three headers that sign an event.

    >>> signature(b"0123456789abcdef", "m", 1, b"{}")["webhook-signature"]
    'v1,BLqcBKrzX/LZcLCKH+YuLiF2mmsud2n7cYsfWQ/dQ7Y='
    """
    digest = hmac.new(key, f"{name}.{at}.".encode() + content, hashlib.sha256).digest()
    return {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}
