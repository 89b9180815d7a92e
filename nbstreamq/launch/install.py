"""Installs the packages of a lock on this machine, once; ``env="sync"`` sends this file there.

It runs in any Python that uv finds, where nbstreamq may not be installed: the standard library is
all that it may import. The argument is the path of uv, and the standard input has the lock, which
uv reads as requirements. It prints the path of the interpreter that has the packages.

The folder is in use when the file `complete` is in it. So an install that was killed leaves nothing
behind that counts. Whoever installs holds a lock on a file beside the folder, and so does uv, which
may go on when this process is killed.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Most characters of what uv says that are shown.
MAX_SAID = 600


def main() -> None:
    uv, requirements = sys.argv[1], sys.stdin.read()
    machine = f"{sysconfig.get_platform()} {sys.version_info[:2]}"
    key = hashlib.blake2b(f"{machine}\n{requirements}".encode(), digest_size=12).hexdigest()
    folder = cache_folder() / key
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be installing it
        if not (folder / "complete").exists():
            install(uv, requirements, folder, lock.fileno())
    print(folder / "bin" / "python")  # noqa: T201 - what the script that runs this reads


def cache_folder() -> Path:
    """Return the folder that has all environments of this user."""
    cache = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or cache).expanduser() / "nbstreamq/environments"


def install(uv: str, requirements: str, folder: Path, lock: int) -> None:
    """Make an environment with these packages; exit with a line that says why it can't be."""
    lines = requirements.splitlines()
    if missing := [line for line in lines if not is_here(line)]:
        give_up(
            f"{missing[0]!r} is installed from a folder or file that is not on this machine. Share"
            " it, or install the package from an index"
        )
    shutil.rmtree(folder, ignore_errors=True)
    say(f"uv installs {sum(not line.startswith('#') for line in lines)} packages in {folder}")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    run(lock, uv, "venv", "--quiet", "--python", version, str(folder))
    (folder / "lock.txt").write_text(requirements)
    python = str(folder / "bin" / "python")
    # A lock is complete: nothing is to be resolved.
    options = "--no-deps", "--python", python, "--requirements", str(folder / "lock.txt")
    run(lock, uv, "pip", "install", "--quiet", *options)
    (folder / "complete").touch()


def is_here(line: str) -> bool:
    """Return whether what a line of the lock is installed from can be read here."""
    url = urlsplit(line.removeprefix("-e ").rpartition(" @ ")[2])
    return url.scheme != "file" or Path(unquote(url.path)).exists()


def run(lock: int, *command: str) -> None:
    """Run a command that holds the lock, too; exit with what it says if it fails."""
    done = subprocess.run(  # noqa: S603 - uv, as our script has found it
        command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(lock,), check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        give_up(f"uv says {said[:MAX_SAID]}")


def say(text: str) -> None:
    print(f"nbstreamq: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for the unit's log


def give_up(why: str) -> None:
    say(f"env='sync' failed on {os.uname().nodename}: {why}")
    sys.exit(3)


if __name__ == "__main__":
    main()
