"""A worker process that was spawned instead of forked; its supervisor starts it."""

import json
import sys

from ..secret import Address
from ..settings import conceal, receive
from .process import WorkerSpec, main

if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields |= {name: tuple(fields[name]) for name in ("lanes", "homes")}
    known = receive()
    conceal(**known)
    main(WorkerSpec(**fields), Address(known["url"]), known["secret"])
