"""The session that a person comes back to: a file that nobody else can read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from trio_swarm._io import files
from trio_swarm.operators import OperatorSession

__all__ = ["KeptSession"]


@attrs.frozen
class KeptSession:
    """Where the session of one operator at one server is kept."""

    path: Path

    @classmethod
    def of(
        cls,
        url: str,
        name: str | None,
        roles: Sequence[str],
        environ: Mapping[str, str],
        *,
        uds: str | None = None,
    ) -> KeptSession:
        """One file for each server, name and set of roles, below ``XDG_STATE_HOME``.

        Servers are told apart by their URLs, and by the Unix socket ``uds`` that leads to them.
        """
        state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        server = [] if uds is None else [os.path.abspath(uds)]
        known = json.dumps([url.rstrip("/"), name, sorted(roles), *server])
        digest = hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(state / "trio-swarm" / "operators" / f"{digest[:32]}.json")

    def load(self) -> OperatorSession | None:
        """None if there is none. Raises ``ValueError`` and ``OSError`` for one that cannot be used."""
        try:
            data, found = files.read_small(self.path)
        except FileNotFoundError:
            return None
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ValueError(f"{self.path} holds a token, and others could have read or written it")
        try:
            known = json.loads(data)
            session = OperatorSession(**{key: known[key] for key in ("sid", "token", "roles", "features")})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path} is no kept session") from None
        texts = (session.sid, session.token, *session.roles, *session.features)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{self.path} is no kept session")
        return session

    def save(self, session: OperatorSession) -> None:
        """Keep it, mode 0600. Raises ``OSError``."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.replace(self.path, json.dumps(attrs.asdict(session)).encode())

    def forget(self) -> None:
        """It is over."""
        files.remove(self.path)
