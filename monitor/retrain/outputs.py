"""Where what a trainer names may lie: `result.json` is written by somebody else, and names files that we read and serving loads.

    what tidemark reads itself      (reference_uri, training_ids_uri)    below the launch's output folder, or of result_uris
    what serving is told to load    (model_uri)                          the same; or, while result_uris is empty, a URI of
                                                                         an object store or a registry, in any bucket

A folder of this machine is never left: not by `..`, not by `%2e`, not by a link, since a trainer that can write a link could
have the service read its own token, and `progress.txt` is shown to people. So a local file is opened first and then
asked where it is, which no exchange between look and use can deceive; what is no plain file (a pipe, a device) is not
waited for. http and https are never read by us, and serving is sent there only where `result_uris` says so: an address
in a network is a door to what else answers there. Options behind `?`, which could name another S3 server, and
passwords are refused everywhere.

Cost: a few µs, and two system calls per file. Neighbours: `challenger` and `promote` ask, `holdout` reads.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from typing import IO
from urllib.parse import unquote, urlsplit

from monitor.errors import TidemarkError, one_line

_SHOWN = 120


class ContractBroken(TidemarkError):
    """What a trainer left is not what the trainer's contract says; the text is the one line for its author."""


def refuse_outside(uri: str, where: str, roots: Sequence[str]) -> None:
    """ContractBroken unless a file's URI lies below one of the folders; where no folder is known nothing is refused."""
    if not roots:
        return
    place = _place(uri, where)
    if not any(_is_below(place, root) for root in roots):
        raise ContractBroken(f"{where}: expected a file below {one_line(roots[0])[:_SHOWN]}, got {_shown(uri)}; let the trainer "
                             "write it there, or name the folder in retrain.result_uris")


def refuse_model(uri: str, where: str, roots: Sequence[str]) -> None:
    """ContractBroken for a model that serving must not be sent to.

    roots : the launch's output folder, then those of `retrain.result_uris`
    """
    if not roots:
        return
    place = _place(uri, where)
    if any(_is_below(place, root) for root in roots):
        return
    scheme = place[0]
    if len(roots) > 1 or scheme in ("", "http", "https"):
        raise ContractBroken(f"{where}: expected a model below {one_line(roots[0])[:_SHOWN]}"
                             f"{' or of retrain.result_uris' if len(roots) > 1 else ''}, got {_shown(uri)}; let the trainer "
                             "write it there, or name the folder in retrain.result_uris")


def opened(path: str, roots: Sequence[str]) -> IO[bytes] | None:
    """A plain file of this machine for reading, wherever links lead inside the folders; None where nothing is.

    Raises ContractBroken for what is no plain file or lies elsewhere, OSError where it cannot be read.
    """
    try:
        # Without waiting for somebody to write into it, should it be a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "something else"
            raise ContractBroken(f"{path}: expected a file, got {what}; let the trainer write a file of that name")
        local = [os.path.realpath(_place(root, "")[2]) for root in roots if not _place(root, "")[0]]
        itself = f"/proc/self/fd/{handle}"
        real = os.path.realpath(itself if os.path.exists(itself) else path)
        if local and not any(real.startswith(f"{root.rstrip('/')}/") for root in local):
            raise ContractBroken(f"{path}: expected a file below {local[0]}, got a link that leads out of it; let the trainer "
                                 "write the file itself")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _place(uri: str, where: str) -> tuple[str, str, str]:
    """Scheme ("" for this machine), host or bucket, and path of a URI without tricks; ContractBroken for one with."""
    try:
        parts = urlsplit(uri) if "://" in uri else None
        tricks = not uri.isprintable() or "\\" in uri or (parts is not None and (
            bool(parts.query or parts.fragment or parts.password) or "?" in uri
            or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", parts.scheme)))
    except ValueError:
        parts, tricks = None, True
    if tricks:
        raise ContractBroken(f"{where}: expected a path or a URI without options, a password or hidden characters, got "
                             f"{_shown(uri)}; write it plainly")
    path = uri if parts is None else unquote(parts.path)
    if any(step in (".", "..") for step in re.split(r"[/\\]", path)[(path[:2] == "./"):]):
        raise ContractBroken(f"{where}: expected a path without `.` and `..`, got {_shown(uri)}; write it plainly")
    if parts is None:
        return "", "", os.path.abspath(path)
    scheme = parts.scheme.lower()
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ContractBroken(f"{where}: expected a file of this machine, got one of another; write it as file:///PATH")
        return "", "", os.path.abspath(path)
    return scheme, parts.netloc, path


def _is_below(place: tuple[str, str, str], root: str) -> bool:
    scheme, host, path = _place(root, "retrain.result_uris")
    return place[:2] == (scheme, host) and f"{place[2].rstrip('/')}/".startswith(f"{path.rstrip('/')}/")


def _shown(uri: str) -> str:
    """A URI as a line shows it: without what may be a secret."""
    plain = re.sub(r"//[^/]*@", "//...@", uri.partition("?")[0])
    return repr(one_line(plain)[:_SHOWN])
