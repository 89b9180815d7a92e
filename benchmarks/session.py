"""One peer, one round, in a fresh interpreter: ``python -m benchmarks.session NAME MEASURE...``.

Writes a line of JSON for each measure. The process that started it kills it if it hangs.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version

from .calls import identity
from .peer import load


def main(name: str, *measures: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what tools print

    def say(**what: object) -> None:
        print(json.dumps(what), file=out)

    peer = load(name)
    peer.start()
    if (first := peer.gather(peer.submit(identity, [1]))) != [1]:
        sys.exit(f"wrong result: {first!r}")
    say(measure="first")  # before any import that the first result does not need

    from .measures import MEASURES, pace_of

    say(versions={package: version(package) for package in peer.packages})
    pace = pace_of(peer)
    for measure in measures:
        try:
            found = MEASURES[measure].take(peer, pace)
        except Exception as error:
            say(measure=measure, error=f"{type(error).__name__}: {error}"[:300])
        else:
            say(measure=measure, found=found and asdict(found))
    say(over=True)
    peer.stop()
    os._exit(0)  # not to wait for what waits: it is ended by force


if __name__ == "__main__":
    main(*sys.argv[1:])
