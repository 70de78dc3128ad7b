"""Certificates that are none, or that the library takes under protest."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from medes.certs.authority import Authority
from medes.errors import CorruptError


def test_a_certificate_without_a_positive_serial_number_is_corrupt() -> None:
    pem = Authority.create("test").pem
    certificate = x509.load_pem_x509_certificate(pem)
    der, number = certificate.public_bytes(serialization.Encoding.DER), certificate.serial_number
    as_written = number.to_bytes(number.bit_length() // 8 + 1, "big")
    assert der.count(as_written) == 1
    negative = b"\x80" + as_written[1:]
    body = base64.encodebytes(der.replace(as_written, negative)).decode()
    damaged = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n".encode()
    with pytest.raises(CorruptError, match="serial number is not positive"):
        Authority.load(damaged + pem[pem.index(b"-----BEGIN PRIVATE") :], "authority.pem")
