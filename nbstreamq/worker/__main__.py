"""A worker process that was spawned instead of forked; its supervisor starts it."""

import json
import os
import sys

from .child import Spec, main

if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields["lanes"] = tuple(fields["lanes"])
    url, secret = os.environ.pop("NBSTREAMQ_URL"), os.environ.pop("NBSTREAMQ_SECRET")
    main(Spec(**fields), url, secret)
