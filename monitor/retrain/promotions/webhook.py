"""Promotion by a signed CloudEvent to the program that deploys models.

    dev.tidemark.promotion             deploy this model in place of that one; a roll-back is one, too: its cause says so
    dev.tidemark.shadow, .ended        let the challenger answer beside the champion and log it in `column`; and no more
    dev.tidemark.promotion.withdrawn   it was not confirmed in time: keep, or take back, the previous model

A 2xx means that the receiver has taken it on. With `confirm_url` the promotion waits until that URL, which may hold
{launch_id} and {version}, answers JSON whose `version` is the new one, and is withdrawn after `confirm_hours`; without it
serving is given `settle_seconds` and believed. The event's id is made from the launch, so that one which is sent again,
after a crash say, is the same. Refusals (4xx) are tried again: hours of training are behind us, and people can mend a
receiver. Neighbours: `retrain.cloudevent` signs and sends, `launchers.rest` is the door.
"""

from __future__ import annotations

from urllib.parse import quote

from monitor.config import RestServer, WebhookPromotion
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import Launch
from monitor.retrain.cloudevent import Sender
from monitor.retrain.launchers.rest import Door, checked_url
from monitor.retrain.promotions import ROLLBACK, PromotionRefused, PromotionWaits, told

PROMOTED, WITHDRAWN = "dev.tidemark.promotion", "dev.tidemark.promotion.withdrawn"
SHADOW, SHADOW_OVER = "dev.tidemark.shadow", "dev.tidemark.shadow.ended"


class Webhook:
    """A `Promotion` by event."""

    def __init__(self, settings: WebhookPromotion, *, path: str = "retrain.promote") -> None:
        self._settings, self._path = settings, path
        self._sender = Sender(settings, secret_file=settings.secret_file, source=settings.source, path=path,
                              what="promotion webhook")
        if settings.confirm_url is not None:
            url = checked_url(settings.confirm_url, f"{path}.confirm_url")
            has_secret = settings.token_file is not None or settings.username is not None
            if has_secret and url.netloc != self._sender.door.host:
                raise ConfigError(f"{path}.confirm_url: expected the host of url, because the credentials are sent to both, got "
                                  "another; use one host")
        self._sent: dict[str, float] = {}           # launch id -> when it was taken; forgotten at a restart: it waits longer

    def promote(self, launch: Launch, now: float) -> str:
        """Send the event, then wait until it is confirmed; the replaced model's URI is not known."""
        if launch.id not in self._sent:
            self._sender.send(PROMOTED, f"{launch.id}.promotion", launch.model, _at(launch), told(launch), patient=True)
            self._sent[launch.id] = now
        if self._settings.confirm_url is not None:
            self._confirmed(launch, now, self._settings.confirm_url)
        del self._sent[launch.id]
        return ""

    def shadow(self, launch: Launch, column: str) -> None:
        """Send the event that the challenger is to answer beside the champion, its answers in that column."""
        if f"{launch.id}.shadow" not in self._sent:
            self._sender.send(SHADOW, f"{launch.id}.shadow", launch.model, launch.shadow_at,
                              {**told(launch), "stage": "shadow", "column": column}, patient=True)
            self._sent[f"{launch.id}.shadow"] = launch.shadow_at

    def shadow_over(self, launch: Launch) -> None:
        """Send the event that this is over."""
        self._sender.send(SHADOW_OVER, f"{launch.id}.shadow.ended", launch.model, launch.shadow_at,
                          {**told(launch), "stage": "shadow"}, patient=True)
        self._sent.pop(f"{launch.id}.shadow", None)

    def _confirmed(self, launch: Launch, now: float, url: str) -> None:
        """Return once the new version answers; PromotionWaits before, PromotionRefused when its time is over."""
        try:
            version = self._version(launch, url)
            serves = f"it serves version {version}" if version else "it names no version"
        except LaunchFailed as error:               # not to be asked is not to be confirmed: the time runs on
            version, serves = "", str(error)
        if version == launch.new_version:
            return
        if now - self._sent[launch.id] < self._settings.confirm_hours * 3600:
            raise PromotionWaits(f"waiting for {self._sender.door.host} to confirm version {launch.new_version}; {serves}")
        if launch.launcher != ROLLBACK:             # nobody wants back what was rolled back
            self._sender.send(WITHDRAWN, f"{launch.id}.withdrawn", launch.model, _at(launch), told(launch), patient=True)
        del self._sent[launch.id]
        raise PromotionRefused(f"version {launch.new_version} was not confirmed within {self._settings.confirm_hours:g} hours "
                               f"({self._path}.confirm_hours); {serves}; it was given up")

    def _version(self, launch: Launch, url: str) -> str:
        """The version that serving says it has; "" where it does not say. A failed call is tried again by the outbox."""
        place = url.replace("{launch_id}", quote(launch.id, safe="")).replace("{version}", quote(launch.new_version, safe=""))
        server = RestServer(url=place, token_file=self._settings.token_file, username=self._settings.username,
                            password_file=self._settings.password_file, ca_file=self._settings.ca_file)
        try:
            door = Door(server, path=self._path, what="confirm_url")
        except ConfigError as error:                # a file that was there at the start
            raise LaunchFailed(str(error), retry=True) from None
        reply = door.call("GET", "", expected=(200, 202, 404), patient=True)
        return one_line(str(reply.document().get("version") or ""))[:80] if reply.status == 200 else ""


def _at(launch: Launch) -> float:
    """When it was judged: a repeated event has the same time."""
    return launch.steps[-1][1] if launch.steps else 0.0
