"""Local workers warn, log and recurse as the kernel does that started them."""

import json

import pytest

SCRIPT = """
import json, logging, sys, warnings

from nbstreamq import TaskQueue

class Mine(UserWarning):
    pass

def report():
    import logging, sys, warnings
    def ends(call):
        with warnings.catch_warnings(record=True) as caught:
            try:
                call()
            except Warning as error:
                return type(error).__name__
        return [str(w.message) for w in caught]
    return {
        "recursion": sys.getrecursionlimit(),
        "levels": [logging.getLogger(n).getEffectiveLevel() for n in ("", "lab", "lab.hall", "x")],
        "runtime": ends(lambda: warnings.warn("r", RuntimeWarning)),
        "noisy": ends(lambda: warnings.warn("noisy thing", UserWarning)),
        "user": ends(lambda: warnings.warn("user", UserWarning)),
    }

if __name__ == "__main__":
    sys.setrecursionlimit(3456)
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("lab").setLevel(logging.ERROR)
    warnings.simplefilter("always", UserWarning)
    warnings.filterwarnings("error", category=RuntimeWarning)
    warnings.filterwarnings("ignore", "NOISY")
    warnings.filterwarnings("ignore", category=Mine)  # no worker can import it
    with TaskQueue({name!r}, {url!r}, workers=1) as queue:
        print(json.dumps([report(), queue.submit(report).result(30)]))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_warnings_logs_and_recursion(run_script, server_url, queue_name, monkeypatch, method):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", method)
    source = SCRIPT.replace("{name!r}", repr(queue_name)).replace("{url!r}", repr(server_url))
    here, there = json.loads(run_script(source))
    assert here == there
    assert there == {
        "recursion": 3456,
        "levels": [10, 40, 40, 10],
        "runtime": "RuntimeWarning",
        "noisy": [],
        "user": ["user"],
    }
