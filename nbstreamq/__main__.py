"""``python -m nbstreamq``."""

from .cli import main

if __name__ == "__main__":
    main()
