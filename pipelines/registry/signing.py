"""Who built a bundle: an HMAC over its manifest, under a key of the environment.

    <state folder>/signing.key      64 hexadecimal digits, mode 0600, made at the first signature
    <bundle>/signature.json         algorithm, environment, fingerprint of the key, signature

The key is that of `RELOOP_SIGNING_KEY`, of the file that `RELOOP_SIGNING_KEY_FILE` names, or of the state
folder; the environment is `RELOOP_ENVIRONMENT`, else `local`. HMAC-SHA256 (RFC 2104, FIPS 198-1) over

    "reloop bundle 1", the environment, and the sha256 of manifest.json, each followed by a line feed

The manifest names every file with its digest, so the signature covers every byte. It stands beside the
manifest and not in it: what a bundle is does not hang on where it was signed. An old manifest with its
old signature is the old bundle, under the old digest: it can never pass for another, and that an old
bundle serves again is a flip of the pointer, which has a fence.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Final

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError

SIGNATURE: Final = "signature.json"
KEY_FILE: Final = "signing.key"
ALGORITHM: Final = "HMAC-SHA256"
LEAST_KEY: Final = 32  # bytes; a shorter secret can be guessed (RFC 2104, section 3: not below the hash's length)


def environment() -> str:
    """Return the name of this environment, which every signature carries."""
    return os.environ.get("RELOOP_ENVIRONMENT") or "local"


def sign(home: Home, folder: Path) -> None:
    """Sign the manifest of a folder that is about to be published, or that a person vouches for.

    Raises:
        StateError: the key is too short, or its file may be read by others.
    """
    secret = _key(home) or _made(home)
    publish.write_json(
        folder / SIGNATURE,
        {
            "algorithm": ALGORITHM,
            "environment": environment(),
            "key": _fingerprint(secret),
            "signature": _mac(secret, environment(), (folder / publish.MANIFEST).read_bytes()),
        },
    )


def vouch(home: Home, folder: Path, digest: str) -> None:
    """Sign a bundle that was not signed here, after checking that it is the one asked for, byte by byte.

    Raises:
        StateError: a byte is wrong, or the key is not fit to sign with.
    """
    found = publish.manifest(folder, verify=True)
    if found.digest != digest:
        raise StateError(str(folder), found=f"the content of bundle {found.digest[:12]}", allowed=digest[:12])
    sign(home, folder)


def check(home: Home, folder: Path, manifest: bytes) -> None:
    """Check that the bytes of a manifest were signed in this environment.

    Raises:
        StateError: there is no signature, it is another environment's or another key's, or it does not fit the manifest.
    """
    file = folder / SIGNATURE
    secret = _key(home)
    if not file.is_file():
        raise _refused(file, "no signature")
    try:
        said = json.loads(file.read_bytes())
        algorithm, where, key, signature = (str(said[name]) for name in ("algorithm", "environment", "key", "signature"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refused(file, f"no signature: {type(error).__name__}") from error
    if algorithm != ALGORITHM:
        raise _refused(file, f"algorithm {algorithm[:20]!r}", ALGORITHM)
    if where != environment():
        raise _refused(file, f"the signature of environment {where[:60]!r}", f"{environment()!r}")
    if secret is None:
        raise _refused(file, "a signature, and no key here to check it with")
    if key != _fingerprint(secret):
        raise _refused(file, f"a signature by key {key[:16]!r}", f"this environment's, {_fingerprint(secret)}")
    if not hmac.compare_digest(signature.encode(), _mac(secret, where, manifest).encode()):
        raise _refused(file, "a signature of another manifest")


def _refused(file: Path, found: str, allowed: str = "the signature of this environment over manifest.json") -> StateError:
    return StateError(
        str(file),
        found=found,
        allowed=allowed,
        hint="train again, or, if you know where the bundle comes from, `reloop bundle sign`; docs/decisions/bundle.md tells of copies between machines",
    )


def _mac(secret: bytes, where: str, manifest: bytes) -> str:
    text = f"reloop bundle 1\n{where}\n{hashlib.sha256(manifest).hexdigest()}\n"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def _fingerprint(secret: bytes) -> str:
    """Return what tells keys apart and says nothing of them."""
    return hashlib.sha256(b"reloop key\n" + secret).hexdigest()[:16]


def _key(home: Home) -> bytes | None:
    """Return the key of this environment; None where there is none yet."""
    if told := os.environ.get("RELOOP_SIGNING_KEY"):
        return _long_enough(told, "RELOOP_SIGNING_KEY")
    named = os.environ.get("RELOOP_SIGNING_KEY_FILE")
    file = Path(named) if named else home.root / KEY_FILE
    if not file.is_file():
        if named:
            raise StateError("RELOOP_SIGNING_KEY_FILE", found=f"no file {named}", allowed="a file that holds the key")
        return None
    if file.stat().st_mode & 0o077:
        raise StateError(
            str(file),
            found=f"mode {file.stat().st_mode & 0o777:04o}",
            allowed="a key that only its owner may read",
            hint=f"chmod 600 {file}",
        )
    return _long_enough(file.read_text(encoding="utf-8"), str(file))


def _long_enough(text: str, where: str) -> bytes:
    secret = text.strip().encode()
    if len(secret) < LEAST_KEY:
        raise StateError(where, found=f"a key of {len(secret)} bytes", allowed=f"at least {LEAST_KEY}", hint="openssl rand -hex 32")
    return secret


def _made(home: Home) -> bytes:
    """Make the key of a state folder; of two that begin at once one makes it and both use it."""
    file = home.root / KEY_FILE
    with publish.locked(home.root / f".{KEY_FILE}.lock"):
        if not file.is_file():
            publish.write_text(file, secrets.token_hex(32) + "\n", mode=0o600)
    return _long_enough(file.read_text(encoding="utf-8"), str(file))
