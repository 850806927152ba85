"""The compiled scanner reads no byte outside its buffer: events end where the next page may not be touched."""

import subprocess
import sys

from tests.conftest import package

#: Run in a process of its own, since a read beyond the page ends it.
_GUARDED = """
import ctypes, mmap, random
import numpy as np
from monitor.config import Kafka
from monitor.ingest import columns_json
from tests.unit.ingest.test_columns import decoders, event, mutated, part_of

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
pages = 256 * mmap.PAGESIZE
start = libc.mmap(None, pages + mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
assert libc.mprotect(start + pages, mmap.PAGESIZE, 0) == 0

scan = columns_json.scan_of(Kafka(decoder="columns"))
plain, fast = decoders(scan)

def guarded(buffer, *rest):
    address = start + pages - len(buffer)
    ctypes.memmove(address, buffer.ctypes.data, len(buffer))
    copy = np.frombuffer((ctypes.c_uint8 * len(buffer)).from_address(address), np.uint8)
    copy.flags.writeable = False
    scan(copy, *rest)

fast._columns._scan = guarded
rng = random.Random(7)
whole = [event(rng) for _ in range(12)]
for message in whole:
    for end in range(0, len(message) + 1, 3):       # each alone behind some others, cut everywhere
        fast._columns.parse([whole[0], message[:end]])
for _ in range(2_000):
    fast._columns.parse([mutated(rng, rng.choice(whole))])
for tail in (b'"', b'{"', b'{"x', b'{"x":', b'{"x":{"age":-', b'{"x":{"age":1.', b'{"x":{"age":1e', b'{"y":tru', b'{"y":"\\\\',
             b'{"id":"\\\\',
             b'{"y":[[', b'{"x":{"vec":[1,', b'{"x":{"vec":[nul', b" ", b""):
    fast._columns.parse([tail])
print("no byte beyond")
"""


def test_an_event_at_the_end_of_memory_is_read_no_further():
    package("numba")
    done = subprocess.run([sys.executable, "-c", _GUARDED], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.endswith("no byte beyond\n"), (done.returncode, done.stderr[-2000:])
