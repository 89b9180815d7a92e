"""How commands are written out."""

import subprocess
import sys

from nbstreamq.wire.connection import pack

INTERRUPTED = """
import signal
from nbstreamq.wire.connection import pack

def interrupt(*_):
    raise KeyboardInterrupt

n = 0
signal.signal(signal.SIGALRM, interrupt)
command = ("XADD", "key", *range(50))
while n < 500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        while True:
            pack(command)
    except KeyboardInterrupt:
        n += 1
print("fine")
"""


def test_all_kinds_of_words():
    words = ("XADD", b"\xff", 12, -1, 0.5, "é")
    assert pack(words) == (
        b"*6\r\n$4\r\nXADD\r\n$1\r\n\xff\r\n$2\r\n12\r\n$2\r\n-1\r\n$3\r\n0.5\r\n$2\r\n\xc3\xa9\r\n"
    )


def test_several_commands_are_joined_and_packed_ones_are_kept():
    ping = pack(("PING",))
    assert pack(ping, ("GET", "key"), ping) == ping + pack(("GET", "key")) + ping


def test_half_a_surrogate_pair_is_escaped():
    assert pack(("GET", "a\ud800", b"\xff")) == pack(("GET", "a\\ud800", b"\xff"))


def test_an_interrupt_meanwhile_does_not_crash_the_process():
    command = [sys.executable, "-c", INTERRUPTED]
    assert subprocess.check_output(command, text=True, timeout=30) == "fine\n"
