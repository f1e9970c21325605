"""Results of attacks on disk, so that an audit that was interrupted goes on where it stopped.

`FOLDER/<attack>@<level>.json` holds an outcome and its seal: SHA-256 over the audit's context
and the outcome.

Invariant: `read` returns an outcome only if it was written whole, in this context, and is
unchanged since; whatever else lies there is taken as absent, and replaced by the next `write`.
The seal is no signature: it is against accidents, not against who may write here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from veilrun import atomic
from veilrun.attacks.card import Outcome
from veilrun.attacks.card_json import decode_outcome, encode_outcome
from veilrun.attacks.levels import Level
from veilrun.errors import DecodeError, StorageError
from veilrun.wire import fields
from veilrun.wire.fields import Fields


@dataclass(frozen=True, slots=True)
class Results:
    """The results in `folder` that belong to `context`, a digest of all that decides them."""

    folder: Path
    context: bytes

    def read(self, attack: str, level: Level) -> Outcome | None:
        """What was found before; None if nothing that can be used was."""
        try:
            body = Fields(fields.json_object(self._path(attack, level).read_bytes()), "")
            seal = body.take("seal", fields.short_text)
            content = json.dumps(body.take("outcome", fields.mapping)).encode()
            body.finish()
            outcome = decode_outcome(content)
        except (OSError, DecodeError):
            return None
        same = hmac.compare_digest(seal.encode(), self._seal(outcome).encode())
        return outcome if same and (outcome.attack, outcome.level) == (attack, level) else None

    def write(self, outcome: Outcome) -> None:
        """Keep one outcome. Raises StorageError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self.folder}: {error.strerror or error}") from error
        content = encode_outcome(outcome).decode()
        line = f'{{"outcome":{content},"seal":"{self._seal(outcome)}"}}\n'
        atomic.write_file(self._path(outcome.attack, outcome.level), line.encode())

    def _path(self, attack: str, level: Level) -> Path:
        return self.folder / f"{attack}@{level}.json"

    def _seal(self, outcome: Outcome) -> str:
        return hashlib.sha256(self.context + encode_outcome(outcome)).hexdigest()
