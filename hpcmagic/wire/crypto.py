"""ALL cryptography of hpcmagic: make and store keys, admit peers by key, verify encryption, seal and open frames.

Nothing here is an algorithm of our own. The bulk path's frames are sealed with AES-256-GCM (NIST SP 800-38D) by
`cryptography`'s AESGCM; their keys are random, one a direction of a connection, and travel over CURVE only. The
control path is ZeroMQ's CURVE (CurveZMQ, RFC 26: Curve25519,
XSalsa20, Poly1305) on every TCP socket, and ZAP (RFC 27) decides which public keys may connect:

    who            its key pair      who may know the secret
    keeper         server.key        the session's user
    notebooks      client.key        the session's user
    ranks          engine.key        the session's user

All three pairs are made for one session, lie in 0600 files in a 0700 directory, and are removed at its end.
Servers admit just these three public keys. The model and its limits: docs/security.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.auth
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from zmq.auth.thread import ThreadAuthenticator

from hpcmagic.errors import ChannelError, NotEncrypted, Tampered
from hpcmagic.rendezvous import SessionDirectory, require_private

PEERS = ("server", "client", "engine")

ZAP_DOMAIN = b"hpcmagic"
HANDSHAKE_MS = 5_000  # a peer that has not proved its key by then is cut off
HEARTBEAT_MS = 30_000  # ZMTP pings: a vanished peer is noticed though TCP says nothing …
HEARTBEAT_TIMEOUT_MS = 600_000  # … but a laptop may sleep, and a network be cut, for a while
FRAME_LIMIT_NBYTES = 16 << 10  # a stranger makes the keeper hold one a connection; wire/envelope.py cuts to it
BACKLOG = 4096

KEY_NBYTES = 32  # AES-256
TAG_NBYTES = 16
BLOCK_NBYTES = 16
KEY_LIMIT_BLOCKS = 1 << 36  # a TiB a key: 2^-57, TLS 1.3's margin for AES-GCM (RFC 8446, 5.5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, Z85 text. The secret never shows in a repr."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=***)"


def make_keys(directory: SessionDirectory) -> dict[str, bytes]:
    """Make a session's key pairs and its signing key, store them; give the public keys by peer."""
    public_keys = {}
    for who in PEERS:
        public, secret = zmq.curve_keypair()
        directory.write(directory.key(who), f"{public.decode()}\n{secret.decode()}\n")
        public_keys[who] = public
    directory.write(directory.key("signing"), secrets.token_hex(32))
    return public_keys


def load_key_pair(directory: SessionDirectory, who: str) -> KeyPair:
    """Read a key pair; refuses a file that others may read."""
    path = directory.key(who)
    require_private(path)
    public, secret = path.read_bytes().split()
    return KeyPair(public, secret)


def load_signing_key(directory: SessionDirectory) -> bytes:
    """Read the key that signs ipyparallel's messages (HMAC-SHA256)."""
    path = directory.key("signing")
    require_private(path)
    return path.read_bytes()


class _KnownKeys:
    """The public keys that a server admits, in the form that pyzmq's authenticator asks for."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self.public_keys = frozenset(public_keys)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the peer with this public key (Z85) may connect."""
        return key in self.public_keys


def admit_only(context: zmq.Context[Any], public_keys: Iterable[bytes]) -> ThreadAuthenticator:
    """Make every server socket of a context refuse all peers but those with these public keys.

    Must be called before any socket of the context is bound: libzmq asks nobody where no authenticator
    is, hence the enforced domain, with which such a socket refuses everyone. The caller keeps the result.
    """
    for option, value in (
        (zmq.ZAP_DOMAIN, ZAP_DOMAIN),
        (zmq.ZAP_ENFORCE_DOMAIN, 1),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
        (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
        (zmq.MAXMSGSIZE, FRAME_LIMIT_NBYTES),
        (zmq.BACKLOG, BACKLOG),
    ):
        context.setsockopt(option, value)
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(domain=ZAP_DOMAIN.decode(), credentials_provider=_KnownKeys(public_keys))
    return authenticator


def be_careful_client(context: zmq.Context[Any]) -> None:
    """Give the sockets of a connecting side the same pings and limits; it trusts only the server's key."""
    context.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    context.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    context.setsockopt(zmq.MAXMSGSIZE, FRAME_LIMIT_NBYTES)


def require_encrypted(socket: zmq.Socket[Any]) -> None:
    """Refuse a connecting socket that does not speak CURVE.

    Raises
    ------
    NotEncrypted
        The socket's mechanism is another.
    """
    mechanism = socket.getsockopt(zmq.MECHANISM)
    if mechanism != zmq.CURVE:
        raise NotEncrypted(
            f"A socket to the session speaks {zmq.SecurityMechanism(int(mechanism)).name}, not CURVE.",
            "End the session with `%hpc stop` and start it again; report this if it stays.",
        )


def make_frame_key() -> bytes:
    """Make the key for one direction of one connection; it is used for nothing else, and stored nowhere."""
    return secrets.token_bytes(KEY_NBYTES)


class _Counted:
    """A key whose nonces are counted: none is ever used twice, and both sides agree on the next without sending it.

    Parameters
    ----------
    key
        32 random bytes, for one direction of one connection.
    bound
        What every frame is bound to besides its own header: protocol, session, direction.
    """

    def __init__(self, key: bytes, bound: bytes) -> None:
        self._cipher = AESGCM(key)
        self._bound = bound
        self._frames = self._blocks = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(frames={self._frames})"

    def left_nbytes(self) -> int:
        """Give how many bytes the key may still serve."""
        return max(0, KEY_LIMIT_BLOCKS - self._blocks) * BLOCK_NBYTES

    def _next_nonce(self, nbytes: int) -> bytes:
        """Count one frame; a key that has served its time serves no more."""
        self._blocks += 2 + nbytes // BLOCK_NBYTES
        if self._blocks > KEY_LIMIT_BLOCKS:
            raise ChannelError("A key of the bulk channel has sealed all it may (1 TiB).", "Cut the value in parts.")
        nonce = self._frames.to_bytes(12, "big")
        self._frames += 1
        return nonce


class Sealer(_Counted):
    """Seals the frames that one side sends over one connection."""

    def seal_into(self, data: Any, header: bytes, into: memoryview) -> None:
        """Seal `data` into ``len(data) + TAG_NBYTES`` bytes of `into`; `header` is authenticated with it."""
        self._cipher.encrypt_into(self._next_nonce(len(data)), data, self._bound + header, into)


class Opener(_Counted):
    """Opens the frames that one side receives over one connection, in the order in which they were sealed."""

    def open_into(self, sealed: memoryview, header: bytes, into: memoryview) -> None:
        """Open a frame into ``len(sealed) - TAG_NBYTES`` bytes of `into`.

        Raises
        ------
        Tampered
            It is not the next frame of this connection, unchanged; `into` then holds nothing to be used.
        """
        try:
            self._cipher.decrypt_into(self._next_nonce(len(into)), sealed, self._bound + header, into)
        except InvalidTag:
            raise Tampered(
                "A frame of the bulk channel was changed, replayed, left out or put in another order on its way.",
                "Nothing of it was used. Try again; if it happens again, tell your site's administrators.",
            ) from None
