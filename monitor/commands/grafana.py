"""Grafana over HTTP: folder, data source, dashboards and marks, each made once and brought up to date afterwards.

The one module that imports `grafana-client` (the extra `grafana`), and only when it is asked to. Everything is found by
an id of ours (`uid`, or a mark's tag) before it is written, so that a second push changes nothing: the answer says what
was created, updated or left alone. Dashboards are saved with `overwrite`, since the code owns them and Grafana shows
them read-only; a refusal that stays (another owner: a plugin, file provisioning) is one line.

Every failure is a TidemarkError of one line that says what was tried: no server, no Grafana there, no right, no such
token. The token stands in no message. Neighbours: `story` makes the marks, `dashboards` is the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from monitor.commands.story import TAG, Mark
from monitor.errors import ConfigError, TidemarkError, one_line

Outcome = Literal["created", "updated", "unchanged"]

#: Most marks that one answer of Grafana is asked for; where there are more, the missing ones are asked for by their id.
MARKS_MAX = 5_000
SECONDS = 10.0
#: What Grafana adds to a dashboard that it keeps.
_GRAFANAS_OWN = ("id", "version")


class Grafana:
    """One Grafana and what is written to it. Raises TidemarkError from every method.

    url : address that people use, with a sub-path where there is one      token : of a service account, role Editor (Admin
    to write a data source)      ca_file : certificates (PEM) to check the server's against
    """

    def __init__(self, url: str, token: str, *, ca_file: str | None = None, where: str = "--url") -> None:
        try:
            import grafana_client.client
            import niquests
            from grafana_client.api import GrafanaApi
        except ImportError:
            raise TidemarkError("expected the package grafana-client, found none; pip install 'tidemark[grafana]'") from None
        self.url = url.rstrip("/")
        parts = checked_url(url, where)
        self._errors = grafana_client.client
        self._not_json = niquests.exceptions.JSONDecodeError
        self._unreachable: tuple[type[Exception], ...] = (niquests.exceptions.RequestException, OSError)
        # Untyped from here on: the client's methods have no annotations.
        self._api: Any = GrafanaApi(
            token, protocol=parts.scheme, host=parts.hostname, port=parts.port, verify=ca_file or True, timeout=SECONDS,
            url_path_prefix=f"{parts.path.strip('/')}/".lstrip("/"), user_agent="tidemark")

    def close(self) -> None:
        """Close the connection."""
        self._api.client.s.close()

    # ---- folder, data source, dashboards ------------------------------------------------------------------------------

    def folder(self, uid: str, title: str) -> Outcome:
        """A folder with this uid; its title is left as it is, because people rename folders."""
        if self._found(lambda: self._api.folder.get_folder(uid), "read folders") is not None:
            return "unchanged"
        self._ask(lambda: self._api.folder.create_folder(title, uid=uid), f"create the folder {title!r}")
        return "created"

    def datasource(self, uid: str, name: str, prometheus_url: str) -> Outcome:
        """A Prometheus data source with this uid and address; what else people set on it is kept."""
        wanted: dict[str, object] = {"uid": uid, "name": name, "type": "prometheus", "access": "proxy", "url": prometheus_url}
        there = self._found(lambda: self._api.datasource.get_datasource_by_uid(uid), "read data sources")
        if there is None:
            self._ask(lambda: self._api.datasource.create_datasource(
                {**wanted, "jsonData": {"httpMethod": "POST", "timeInterval": "30s"}}), f"create the data source {name!r}")
            return "created"
        if all(there.get(key) == value for key, value in wanted.items() if key != "name"):
            return "unchanged"
        changed = {**there, **wanted, "name": there.get("name", name)}
        self._ask(lambda: self._api.datasource.update_datasource_by_uid(uid, changed), f"update the data source {name!r}")
        return "updated"

    def dashboard(self, tree: Mapping[str, Any], folder: str, message: str) -> Outcome:
        """A dashboard in a folder; saved only where it differs from what is there."""
        uid = tree["uid"]
        there = self._found(lambda: self._api.dashboard.get_dashboard(uid), "read dashboards")
        if there is not None:
            kept = {key: value for key, value in there.get("dashboard", {}).items() if key not in _GRAFANAS_OWN}
            if kept == tree and there.get("meta", {}).get("folderUid") == folder:
                return "unchanged"
        self._ask(lambda: self._api.dashboard.update_dashboard(
            {"dashboard": dict(tree), "folderUid": folder, "overwrite": True, "message": message}), f"save the dashboard {uid}")
        return "created" if there is None else "updated"

    # ---- marks --------------------------------------------------------------------------------------------------------

    def marks(self, wanted: Sequence[Mark]) -> dict[Outcome, int]:
        """Each mark once: created where there is none, closed or corrected where it differs."""
        done: dict[Outcome, int] = {"created": 0, "updated": 0, "unchanged": 0}
        if not wanted:
            return done
        there = self._marks([TAG], wanted, MARKS_MAX)
        by_id = _by_id(there)
        for mark in wanted:
            one = by_id.get(mark.id)
            if one is None and len(there) >= MARKS_MAX:
                one = _by_id(self._marks([mark.id], [mark], 1)).get(mark.id)
            done[self._mark(mark, one)] += 1
        return done

    def _marks(self, tags: Sequence[str], wanted: Sequence[Mark], limit: int) -> list[dict[str, Any]]:
        """Marks of these tags that lie in the time of the wanted ones."""
        ends = [mark.start if mark.end is None else mark.end for mark in wanted]
        found = self._ask(lambda: self._api.annotations.find_annotations(
            time_from=max(min(mark.start for mark in wanted) - 1, 1), time_to=max(ends) + 1, ann_type="annotation", tags=tags,
            limit=limit), "read annotations", kind=list)
        return [one for one in found if isinstance(one, dict)]

    def _mark(self, mark: Mark, there: Mapping[str, Any] | None) -> Outcome:
        if there is None:
            self._ask(lambda: self._api.annotations.add_annotation(
                time_from=mark.start, time_to=mark.end, tags=list(mark.tags), text=mark.text), "create an annotation")
            return "created"
        end = mark.start if mark.end is None else mark.end          # Grafana gives a moment its start as its end
        kept = there.get("time"), there.get("timeEnd") or there.get("time"), there.get("text"), set(there.get("tags") or ())
        if kept == (mark.start, end, mark.text, set(mark.tags)):
            return "unchanged"
        # All fields, because a partial update without tags would take them away.
        self._ask(lambda: self._api.annotations.update_annotation(
            there["id"], time_from=mark.start, time_to=end, tags=list(mark.tags), text=mark.text), "update an annotation")
        return "updated"

    # ---- asking -------------------------------------------------------------------------------------------------------

    def _found(self, call: Callable[[], Any], what: str) -> dict[str, Any] | None:
        """The answer, or None where Grafana has no such thing."""
        try:
            found: dict[str, Any] = self._ask(call, what)
        except _NotFound:
            return None
        return found

    def _ask(self, call: Callable[[], Any], what: str, kind: type = dict) -> Any:
        """The answer of one call; whatever goes wrong is one line."""
        try:
            answer = call()
        except self._errors.GrafanaTimeoutError:
            raise TidemarkError(f"{self.url}: expected Grafana to {what} within {SECONDS:g} s, got no answer; is it overloaded?"
                                ) from None
        except self._errors.GrafanaException as error:
            raise self._refused(error, what) from None
        except self._not_json:
            answer = None                           # no JSON, although it said so
        except self._unreachable as error:
            raise TidemarkError(f"{self.url}: expected Grafana there, got {_reason(error)}; is it running, and is this its "
                                "address?") from None
        if not isinstance(answer, kind):
            raise TidemarkError(f"{self.url}: expected Grafana's answer in JSON to {what}, got something else; is this "
                                "Grafana's own address, and not a login page before it?")
        return answer

    def _refused(self, error: Any, what: str) -> TidemarkError:
        """What a status code means, and what to do."""
        said = error.response.get("message", "") if isinstance(error.response, dict) else ""
        said = one_line(str(said))[:200] or "no reason given"
        status = error.status_code
        if status == 401:
            return TidemarkError(f"{self.url}: expected a token that Grafana takes, got 401; make one for a service account with "
                                 "the role Editor (Admin to write a data source)")
        if status == 403:
            return TidemarkError(f"{self.url}: expected a token that may {what}, got 403 ({said}); give its service account the "
                                 "role Editor, or Admin for data sources")
        if status == 404:
            return _NotFound(f"{self.url}: expected Grafana to {what}, got 404 ({said}); is this Grafana's address, with its "
                             "sub-path?")
        if status == 412:
            return TidemarkError(f"{self.url}: expected to {what}, got 412 ({said}); somebody else owns it or saved it just now: "
                                 "push again, or remove the other one")
        return TidemarkError(f"{self.url}: expected to {what}, got {status} ({said}); see Grafana's log")


class _NotFound(TidemarkError):
    """There is no such thing; an error only where it had to be there."""


def checked_url(url: str, where: str) -> Any:
    """The parts of an address; ConfigError where it is none, or holds a password."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
        shown = url.split("@")[-1][:80]             # what stands before may be a password
        raise ConfigError(f"{where}: expected an address such as https://grafana.example, got {shown!r}; mend it")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: expected an address without a name and password in it; give a token in a file")
    return parts


def _by_id(found: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Annotations by every tag of theirs; a mark is found by its id among them."""
    return {tag: one for one in found for tag in one.get("tags") or ()}


def _reason(error: Exception) -> str:
    """The innermost words of a failed connection: `Connection refused`, not the whole chain of what wrapped it."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", one_line(str(error)))
    match = (re.search(r"\[Errno -?\d+\] ([^)\]'\"]+)", text)
             or re.search(r"\(Caused by \w+\(['\"]?(.+?)['\"]?\)\)$", text))
    return (match[1] if match else text)[:160].strip() or type(error).__name__
