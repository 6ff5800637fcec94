"""Takes the place of HAProxy, which Serve runs in front of its replicas, and runs it with what Serve's set-up lacks.

Serve starts this program by a script that ``ingress.py`` writes, in a bare interpreter: it uses nothing but Python.

    haproxy.py BINARY HOST LINES -- ARGUMENTS

Args:
    BINARY: the real HAProxy.
    HOST: the address that clients connect to. Serve itself listens on the loopback address only.
    LINES: a file with lines to add to the configuration, by section.
    ARGUMENTS: Serve's, for HAProxy.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
UNWANTED = ("frontend prometheus", "listen stats")
"""Servers of HAProxy's own, at fixed ports on all addresses: a second service on the machine could not start."""
UNWANTED_LINE = r"(?m)^\s*errorfile .*\n"
"""Responses in plain text, which all have the status 500."""
NOT_FOUND = r"http-request return status 404 .*"
NOT_YET = "http-request deny deny_status 503"


def configuration(theirs: str, host: str, ours: str) -> str:
    """Serve's configuration with our lines at the end of its sections, and on our address.

    While HAProxy does not know where the replicas are, it responds with a 503.
    """
    lines = {_name(section): section.partition("\n")[2] for section in _sections(ours)}
    kept = [section for section in _sections(theirs) if _name(section) not in UNWANTED]
    text = "".join(section + lines.get(_name(section), "") for section in kept)
    text = re.sub(UNWANTED_LINE, "", text)
    if not re.search(r"(?m)^\s*use_backend ", text):
        text = re.sub(NOT_FOUND, NOT_YET, text)
    address = f"[{host}]" if ":" in host else host
    return re.sub(r"(?m)^(frontend http_frontend\n\s*bind )\S+:(\d+)$", rf"\g<1>{address}:\g<2>", text)


def _sections(text: str) -> list[str]:
    return [section for section in re.split(r"(?m)^(?=\S)", text) if section.strip()]


def _name(section: str) -> str:
    return section.partition("\n")[0].strip()


def die_with_parent() -> None:
    """Have Linux kill this process when Serve's proxy actor ends, however it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended meanwhile
        sys.exit(1)


def main(binary: str, host: str, lines: str, separator: str, *arguments: str) -> None:
    """Adapt the configuration that the arguments name, and become HAProxy."""
    assert separator == "--"
    die_with_parent()
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(configuration(path.read_text(), host, Path(lines).read_text()))
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
