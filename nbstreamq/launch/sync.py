"""`env="sync"`: the packages of this Python, for the machines where workers start."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..environment import normalised
from ..home import PYTHON

#: Sets `path` to an interpreter that has the packages.
_SYNC = """
uv=$(command -v uv || command -v "$HOME/.local/bin/uv" || command -v "$HOME/.cargo/bin/uv") || uv=
if [ -z "$uv" ]; then
  echo "nbstreamq: $(uname -n) has no uv, which env='sync' needs. Install it there, for instance by\
 pip install --user uv, or have prologue= put it on PATH" >&2
  exit 3
fi
echo "nbstreamq: {preparing} on $(uname -n)" >&2
path=$("$uv" run --quiet --no-project --python {python} -- python -I -c {source} "$uv" \
<<'END OF LOCK'
{lock}
END OF LOCK
) || exit 3
"""
#: What is logged before uv looks for Python; it may take minutes until the unit starts.
PREPARING = "uv prepares the environment"


def sync_lines() -> str:
    """Return the part of a script, for ``sh``, that sets `path` to a Python with our packages."""
    source = Path(__file__).with_name("install.py").read_text(encoding="utf-8")
    return _SYNC.format(
        preparing=PREPARING, python=PYTHON, source=shlex.quote(source), lock=lock_here()
    ).strip()


def lock_here() -> str:
    """Return a line for each installed distribution, as requirements that uv reads.

    What was installed from a repository or an archive is taken from there. What was installed from
    a folder of this machine is taken from the same path, which machines may share.
    """
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if distribution.metadata["Name"]:
            name = normalised(distribution.metadata["Name"])
            found.setdefault(name, _requirement(name, distribution))
    return "\n".join(line for _, line in sorted(found.items()))


def _requirement(name: str, distribution: metadata.Distribution) -> str:
    pinned = f"{name}=={distribution.version}"
    try:
        known: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
        url, is_editable = known["url"], known.get("dir_info", {}).get("editable", False)
        vcs = known.get("vcs_info", {})
    except (ValueError, KeyError, AttributeError):  # it is from an index
        return pinned
    url = _without_login(url)
    inside = f"#subdirectory={known['subdirectory']}" if known.get("subdirectory") else ""
    if vcs:
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{inside}"
    path = Path(unquote(urlsplit(url).path)) if urlsplit(url).scheme == "file" else None
    if path is not None and not path.exists():  # where conda has built it
        return pinned
    if is_editable:
        return f"-e {url}"
    # It may be installed again from the same path: the line must not be the same then.
    when = f"\n# {name} was installed at {_installed_at(distribution)}" if path else ""
    return f"{name} @ {url}{inside}{when}"


def _without_login(url: str) -> str:
    """Return a URL without a password or token, which a script must not show.

    Not all installers leave them out of what they record. A variable such as ``${TOKEN}`` is no
    secret, and neither is ``git@`` of ssh.
    """
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    if "${" in login or (parts.scheme == "ssh" and parts.password is None):
        return url
    return parts._replace(netloc=place).geturl() if login else url


def _installed_at(distribution: metadata.Distribution) -> int:
    record = Path(str(distribution.locate_file(""))) / ""
    for file in distribution.files or ():
        if file.name == "RECORD":
            record = Path(str(file.locate()))
    return record.stat().st_mtime_ns
