"""Encrypts and decrypts a message with AES-128-CTR and signs it; keeps sealed records and their key ring."""

import hashlib
import random
from collections import OrderedDict

from cryptography import x509  # noqa: F401  (an authentication service has certificates loaded)
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medes.runtimes.instance.checked_state import CheckedState, digest

RECORDS = 9_000
SEALED_MAX = 32
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

state = CheckedState("aes", buffer_bytes=1 << 20)
signing_key = ec.derive_private_key(0x1F2E3D4C5B6A79881726354433221100, ec.SECP256R1())
public_key = signing_key.public_key()
key_ring = {f"user-{number}": hashlib.sha256(f"key {number}".encode()).digest() for number in range(RECORDS)}
profiles = {
    name: {"key": key.hex(), "role": "reader", "groups": [name[-1], name[-2:]]}
    for name, key in key_ring.items()
}
sealed: OrderedDict[str, bytes] = OrderedDict()


def _counter_mode(key: bytes, nonce: bytes) -> Cipher:
    return Cipher(algorithms.AES(key), modes.CTR(nonce))


def handler(event, context):
    key = state.begin(event)
    generator = random.Random(int(event["seed"]))
    message = "".join(generator.choices(ALPHABET, k=min(int(event["length"]), 1 << 20))).encode()
    user = f"user-{generator.randrange(RECORDS)}"
    secret, nonce = key_ring[user][:16], generator.randbytes(16)
    encryptor = _counter_mode(secret, nonce).encryptor()
    encrypted = encryptor.update(message) + encryptor.finalize()
    decryptor = _counter_mode(secret, nonce).decryptor()
    if decryptor.update(sealed.get(key, encrypted)) + decryptor.finalize() != message:
        raise RuntimeError("the kept ciphertext does not decrypt to the message")
    sealed[key] = encrypted
    while len(sealed) > SEALED_MAX:
        sealed.popitem(last=False)
    tag = hmac.HMAC(key_ring[user], hashes.SHA256())
    tag.update(encrypted)
    signature = signing_key.sign(encrypted, ec.ECDSA(hashes.SHA256()))
    public_key.verify(signature, encrypted, ec.ECDSA(hashes.SHA256()))
    if profiles[user]["key"] != key_ring[user].hex():
        raise RuntimeError("the key ring and the profiles disagree")
    return state.finish(key, {"user": user, "encrypted": digest(encrypted), "tag": tag.finalize().hex()})
