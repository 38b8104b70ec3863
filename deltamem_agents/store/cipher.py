"""Sealing of bytes at rest, with AES-256-GCM. Needs ``cryptography``, which is imported when a key is used.

A sealed value is, in this order:

    4 bytes   D3 44 4D 01 (the last one is the version of this format)
    8 bytes   key id: the first bytes of SHA-256("deltamem-agents key id" NUL key)
    12 bytes  nonce, random for each value
    n bytes   ciphertext
    16 bytes  tag; it covers the first 12 bytes and the context of the value too

The **context** says what the value is, such as b"blob:" and a checksum. It is not kept with the value and must be the
same when it is opened, so that no sealed value passes for another one. Random nonces are good for 2³² values under one
key.
"""

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CorruptState, StoreKeyError

KEY_VARIABLE = "DELTAMEM_STORE_KEY"
"""Where keys are taken from when none are given: base64, separated by commas, the current one first."""

KEY_BYTES = 32
MAGIC = b"\xd3DM\x01"
ID_BYTES, NONCE_BYTES, TAG_BYTES = 8, 12, 16
HEADER_BYTES = len(MAGIC) + ID_BYTES
OVERHEAD = HEADER_BYTES + NONCE_BYTES + TAG_BYTES  # how much longer a value gets

HOW = 'python -c "import secrets,base64;print(base64.b64encode(secrets.token_bytes(32)).decode())"'
CHECKED, CLEAR = b"deltamem-agents", "clear"

Key = bytes | str
KeySource = Key | Sequence[Key] | Callable[[], Key | Sequence[Key]] | None


class Cipher:
    """Seals with the first of its keys and opens with any of them. Without keys, values stay as they are.

    Its errors say what is wrong and what to do; the caller puts before them which store or which value it is.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        """See :meth:`of`."""
        for number, key in enumerate(keys, 1):
            _check_length(key, f"key {number}")
        self._ciphers: dict[bytes, Any] = {_key_id(key): _aead(key) for key in keys}
        self._current = next(iter(self._ciphers), None)

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> "Cipher":
        """A cipher of keys of 32 bytes, the current one first; of none: the cipher that does nothing.

        Raises:
            StoreKeyError: a key of another length, or ``cryptography`` is not installed.
        """
        return cls(keys)

    def __repr__(self) -> str:
        return f"Cipher({len(self._ciphers)} keys)"

    @property
    def encrypts(self) -> bool:
        return self._current is not None

    def seal(self, data: bytes, context: bytes) -> bytes:
        """The sealed value of ``data``, which opens in the same context only."""
        if self._current is None:
            return data
        header, nonce = MAGIC + self._current, secrets.token_bytes(NONCE_BYTES)
        return header + nonce + bytes(self._ciphers[self._current].encrypt(nonce, data, header + context))

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The reverse of :meth:`seal`.

        Raises:
            StoreKeyError: there is no key of this id here, or the value is not sealed.
            CorruptState: the key is here, and value and context are not what was sealed.
        """
        if self._current is None:
            return sealed
        if not sealed.startswith(MAGIC):
            raise StoreKeyError(
                "a value is not encrypted, and a key is set: open the store without a key, or, if the store is "
                "encrypted, the value is damaged: restore it from a backup"
            )
        if len(sealed) < OVERHEAD:
            raise CorruptState("an encrypted value is cut off: restore it from a backup")
        header, nonce = sealed[:HEADER_BYTES], sealed[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES]
        cipher = self._ciphers.get(header[len(MAGIC) :])
        if cipher is None:
            raise StoreKeyError(f"a value is encrypted under another key ({_name(header)}): {_ask_for_key()}")
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(cipher.decrypt(nonce, sealed[HEADER_BYTES + NONCE_BYTES :], header + context))
        except InvalidTag:
            raise CorruptState(
                "an encrypted value is damaged or was put in another's place: restore it from a backup"
            ) from None

    def needs_reseal(self, sealed: bytes) -> bool:
        """Whether a value is not as :meth:`seal` would leave it: under another key, in clear, or (no keys) sealed."""
        if self._current is None:
            return sealed.startswith(MAGIC) and len(sealed) >= OVERHEAD
        return not sealed.startswith(MAGIC + self._current)

    def check_value(self) -> str:
        """Text for the store to keep, by which :meth:`check` tells a right key from a wrong one."""
        return base64.b64encode(self.seal(CHECKED, b"check")).decode() if self.encrypts else CLEAR

    def check(self, value: str | None) -> None:
        """Raise unless this is a cipher for the store that kept ``value`` (None: a store from before there were keys).

        A key that is not the current one will do: the store is opened to change its key.

        Raises:
            StoreKeyError: a key is missing, is another one, or is set for a store that is not encrypted.
            CorruptState: the text is damaged.
        """
        clear = value is None or value == CLEAR
        if clear and self.encrypts:
            raise StoreKeyError(
                f"it is not encrypted, and a key is set: unset {KEY_VARIABLE} (or give no key), or encrypt it by "
                "giving it keys (rotate)"
            )
        if clear:
            return
        try:
            sealed = base64.b64decode(str(value), validate=True)
        except ValueError:
            sealed = b""
        if not sealed.startswith(MAGIC) or len(sealed) != len(CHECKED) + OVERHEAD:
            raise CorruptState("its check of the key is damaged: restore it from a backup")
        if not self.encrypts:
            raise StoreKeyError(f"it is encrypted ({_name(sealed)}), and no key is set: {_ask_for_key()}")
        self.open(sealed, b"check")


def keys_from(source: KeySource = None) -> list[bytes]:
    """The keys that a source names, the current one first.

    Args:
        source: None (the environment variable ``DELTAMEM_STORE_KEY``; no keys when it is unset or empty), a key, keys
            (an empty sequence: none), or a function that returns these, for keys that lie in a vault; what it raises
            is raised here. A key is 32 bytes, or their base64 as text, of either alphabet; a text may hold several,
            separated by commas.

    Raises:
        StoreKeyError: something that is no key. The message does not contain it.
    """
    if source is None:
        text = os.environ.get(KEY_VARIABLE, "")
        return _keys(text, KEY_VARIABLE) if text.strip() else []
    if not callable(source):
        return _keys(source, "the store's key")
    given = source()
    if given is None or (isinstance(given, Sequence) and not given):
        # Taken for "no keys", this would make a store in clear where one asked for encryption.
        raise StoreKeyError("the function that gives the store's key returned none: let it return 32 bytes or base64")
    return _keys(given, "the store's key")


def new_key() -> str:
    """A new random key, as text."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def _keys(given: Any, what: str) -> list[bytes]:
    if isinstance(given, str):
        given = given.split(",")
    elif isinstance(given, bytes | bytearray) or not isinstance(given, Sequence):
        given = [given]
    several = len(given) > 1
    return [_key(key, f"{what} ({number} of {len(given)})" if several else what) for number, key in enumerate(given, 1)]


def _key(key: Any, what: str) -> bytes:
    if isinstance(key, str):
        text = key.strip().translate(str.maketrans("-_", "+/")).rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
    if not isinstance(key, bytes | bytearray):
        kind = type(key).__name__
        raise StoreKeyError(f"{what} is of type {kind}: give {KEY_BYTES} bytes, or their base64; make one with {HOW}")
    key = bytes(key)
    _check_length(key, what)
    return key


def _check_length(key: bytes, what: str) -> None:
    if len(key) != KEY_BYTES:
        raise StoreKeyError(f"{what} is not {KEY_BYTES} bytes, or the base64 of {KEY_BYTES} bytes: make one with {HOW}")


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"deltamem-agents key id\0" + key).digest()[:ID_BYTES]


def _name(sealed: bytes) -> str:
    return f"key id {sealed[len(MAGIC) : HEADER_BYTES].hex()}"


def _ask_for_key() -> str:
    return f"set {KEY_VARIABLE} to the key that it was made with (after a change of keys: also to the older ones)"


def _aead(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise StoreKeyError(
            f"an encrypted store needs the library cryptography ({error}): pip install deltamem-agents[encryption]"
        ) from error
    return AESGCM(bytes(key))
