"""The promotions: ways in which serving gets the new champion. One module each, imported when a configuration names it.

A promotion may take a while (a canary, a confirmation): `promote` is called again and again, does at most one step, and
raises PromotionWaits until the new model answers. It keeps what it must remember where it acts (the file, the
InferenceService), so that a service that was killed goes on where it was. A refusal leaves serving as it was before.
"""

from __future__ import annotations

from typing import Protocol

from monitor.config import FilePromotion, KServePromotion, WebhookPromotion
from monitor.errors import TidemarkError
from monitor.flow import Launch

#: In place of a launcher's name: the record of a promotion back to an earlier model, which trained nothing.
ROLLBACK = "rollback"


class PromotionRefused(TidemarkError):
    """The challenger does not become the champion; the text says why, for people."""


class ChallengerUnfit(PromotionRefused):
    """What the trainer left beside a better model cannot be used: the launch failed, and counts as one that did."""


class PromotionWaits(TidemarkError):
    """The promotion is under way; the text says what it waits for."""


class Promotion(Protocol):
    """A way to put a model in production; asked for the same launch again it changes nothing more."""

    def promote(self, launch: Launch, now: float) -> str:
        """Put the launch's model in production; returns the URI of the model that it replaces, "" where that is not known.

        now : wall-clock seconds since 1970
        Raises PromotionWaits until it is done, PromotionRefused when it was undone, LaunchFailed for a failed call.
        """


def promotion_for(config: FilePromotion | WebhookPromotion | KServePromotion | None, *,
                  path: str = "retrain.promote") -> Promotion | None:
    """What a configuration's `retrain.promote` names; `path` is where it stands in the file, for ConfigError."""
    if config is None:
        return None
    if isinstance(config, FilePromotion):
        from monitor.retrain.promotions.file import File

        return File(config)
    if isinstance(config, WebhookPromotion):
        from monitor.retrain.promotions.webhook import Webhook

        return Webhook(config, path=path)
    from monitor.retrain.promotions.kserve import KServe

    return KServe(config, path=path)


def told(launch: Launch) -> dict[str, object]:
    """What serving is told of a promotion, by file and by event alike."""
    return {
        "model": launch.model, "version": launch.new_version, "model_uri": launch.model_uri,
        "reference_uri": launch.reference_uri, "launch_id": launch.id, "previous_version": launch.version,
        "champion": launch.champion, "challenger": launch.challenger,
        "difference": [launch.difference_lower, launch.difference_upper],
        "cause": "rollback" if launch.launcher == ROLLBACK else "better",
    }
