"""Stands in for evidently's process, for what evidently cannot be asked to do: what it does is written in its rows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    rows, made = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2])
    if rows == "hang":                              # with a child of its own, which must go with it
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        made.with_name("child").write_text(str(child.pid), encoding="utf-8")
        time.sleep(600)
    if rows == "crash":
        print("Traceback (most recent call last):\nValueError: \x1b[31mbad\x1b[0m column", file=sys.stderr)
        return 1
    if rows == "vanish":
        return 0
    made.write_text(f"<!DOCTYPE html><p>{rows}</p>", encoding="utf-8")
    print('{"rows": [12, 34], "why": "Left out: empty."}', file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
