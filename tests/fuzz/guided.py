"""The fuzz targets led by coverage: ``python -m tests.fuzz.guided http --seconds 180 --seed 1``.

Needs the ``atheris`` package, which no test imports. Figures are on standard error; the exit status is
not 0 where an input made the target fail. Such an input is kept in ``--keep`` (else it is gone), named
``crash-...``: its bytes go to ``one`` of `tests.fuzz.http_edge` or `tests.fuzz.ws_edge` again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = ("http", "ws")


def main() -> int:
    """Fuzz one target until the time is over or an input makes it fail; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="an existing directory, for what was found")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.within is not None:
        fuzz(given.target, given.seconds, given.seed, given.within, given.keep or given.within)
    with tempfile.TemporaryDirectory() as directory:
        # libFuzzer ends the process by itself: whoever has something to clear away is another one.
        inside = [sys.executable, "-m", "tests.fuzz.guided", *sys.argv[1:], "--within", directory]
        return subprocess.call(inside)


def fuzz(target: str, seconds: int, seed: int, directory: Path, keep: Path) -> None:
    """Does not return."""
    import atheris  # Only here: it is for this alone, and not installed for the tests.

    with atheris.instrument_imports(include=["trio_swarm", "h11", "wsproto", "trio_websocket"]):
        from tests.fuzz import http_edge, ws_edge
    edge = http_edge if target == "http" else ws_edge

    def one(data: bytes) -> None:
        edge.one(data)

    corpus = directory / "corpus"
    corpus.mkdir()
    for number, data in enumerate(edge.corpus(seed)):
        (corpus / str(number)).write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed + 1}",
        "-max_len=4096",
        "-timeout=60",
        f"-artifact_prefix={keep}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=edge.custom_mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
