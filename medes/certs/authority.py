"""A cluster's CA: makes itself, signs certificates of parties, reads them. ECDSA P-256 throughout."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medes.certs.parties import Party, party_of
from medes.errors import CorruptError, InvalidArgumentError

CA_DAYS = 3650
# So that a clock which is behind the signer's takes a new certificate.
CLOCK_SKEW = datetime.timedelta(hours=1)
# Of a CA: one that was made by a clock which is set back later would else be good for nobody until then.
CA_BACKDATED = datetime.timedelta(days=365)
CHAIN_MAX = 8  # CAs between a certificate and the one that is believed
_COMMON_NAME_CHARS_MAX = 64
# What reading a certificate or key may raise, now or when a part of it is asked for.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def _parsed(pem: bytes) -> list[x509.Certificate]:
    """Certificates of a PEM text, one at least. Raises _UNREADABLE; also for what the library takes under protest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        found = x509.load_pem_x509_certificates(pem)
        if any(certificate.serial_number <= 0 for certificate in found):
            raise ValueError("a serial number is not positive (RFC 5280)")
    return found


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate with its key, and the CA certificates that others are verified against."""

    certificate: bytes
    private_key: bytes
    ca: bytes


@dataclass(frozen=True, slots=True)
class Details:
    """What a certificate says. Times are seconds since the epoch."""

    party: Party | None
    names: tuple[str, ...]  # DNS names and addresses
    issuer: str
    begins_s: float
    expires_s: float
    is_ca: bool = False

    @property
    def days(self) -> float:
        """For how long it was issued."""
        return (self.expires_s - self.begins_s - CLOCK_SKEW.total_seconds()) / 86400

    def days_left(self, now_s: float) -> float:
        return (self.expires_s - now_s) / 86400


class Authority:
    """A CA's certificate and key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.believed = self.certificate_pem  # what holders of its certificates are to believe

    def believe(self, pem: bytes) -> None:
        """Other CAs besides, as during an exchange; ignored unless this one is among them."""
        if self._certificate in _load_all(pem):
            self.believed = pem

    @property
    def believed_names(self) -> list[str]:
        return [_common_name(c.subject) for c in _load_all(self.believed)]

    @classmethod
    def create(cls, name: str = "", days: float = CA_DAYS) -> Authority:
        """A new CA; without a name it gets a random one, so that clusters can be told apart."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name or f"medes cluster {secrets.token_hex(4)}", "CA")
        builder = (
            _builder(subject, subject, key.public_key(), days, backdated=CA_BACKDATED)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pem: bytes, where: str) -> Authority:
        """From certificate and key in one PEM text. Raises corrupt."""
        try:
            certificate = _parsed(pem)[0]
            key = serialization.load_pem_private_key(pem, None)
            fit = key.public_key() == certificate.public_key()
            _common_name(certificate.subject)
        except _UNREADABLE as error:
            raise CorruptError(f"is no CA with its key: {error}", object=where) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not fit:
            raise CorruptError("the CA's certificate and key do not match", object=where)
        return cls(certificate, key)

    @property
    def name(self) -> str:
        return _common_name(self._certificate.subject)

    @property
    def expires_s(self) -> float:
        return self._certificate.not_valid_after_utc.timestamp()

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pem(self) -> bytes:
        """Certificate and key: whoever has this can be anybody in the cluster."""
        return self.certificate_pem + _key_pem(self._key)

    def issue(self, party: Party, hosts: Iterable[str] = (), *, days: float) -> Pem:
        """A new key and a certificate for the party. `hosts` are DNS names and addresses that it may be reached at by
        clients that check an address; it ends with the CA at the latest. Raises invalid_argument."""
        party.check()
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in party.uris]
        if party.role.serves:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names.append(x509.DNSName(party.server_name))
        names += [_general_name(host) for host in dict.fromkeys(hosts)]
        issuer_key = self._key.public_key()
        builder = (
            _builder(
                _subject(party.name, party.role.value),
                self._certificate.subject,
                key.public_key(),
                days,
                self.expires_s,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pem(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), self.believed)


def details(pem: bytes, where: str) -> Details:
    """What the first certificate of a PEM text says. Raises corrupt."""
    try:
        return _details(_parsed(pem)[0])
    except _UNREADABLE as error:
        raise CorruptError(f"is no certificate: {error}", object=where) from error


def _details(certificate: x509.Certificate) -> Details:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts = (
        *names.get_values_for_type(x509.DNSName),
        *(str(a) for a in names.get_values_for_type(x509.IPAddress)),
    )
    return Details(
        party_of(names.get_values_for_type(x509.UniformResourceIdentifier)),
        hosts,
        _common_name(certificate.issuer),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        _is_ca(certificate),
    )


def check_pem(pem: Pem, certificate: str, private_key: str, ca: str) -> None:
    """Raises invalid_argument when key and certificate do not match, or none of the CA certificates signed it. The
    names are those of the files."""
    chain = _load_all(pem.certificate)
    if not chain:
        raise InvalidArgumentError("is no certificate", object=certificate)
    try:
        key = serialization.load_pem_private_key(pem.private_key, None)
    except TypeError:
        raise InvalidArgumentError("the private key needs a password", object=private_key) from None
    except _UNREADABLE as error:
        raise InvalidArgumentError(f"is no private key: {error}", object=private_key) from error
    try:
        fit = key.public_key() == chain[0].public_key()
    except _UNREADABLE as error:
        raise InvalidArgumentError(f"its key cannot be read: {error}", object=certificate) from error
    if not fit:
        raise InvalidArgumentError(f"is not the key of the certificate {certificate}", object=private_key)
    authorities = _load_all(pem.ca)
    if not authorities:
        raise InvalidArgumentError("holds no CA", object=ca)
    if not any(_signed(last, authority) for last in chain for authority in authorities):
        raise InvalidArgumentError(f"is not of the CA in {ca}", object=certificate)


def is_of(certificate: bytes, chain: bytes, ca: bytes) -> bool:
    """Whether one of the CA certificates signed it, itself or by way of CAs in `chain`. (PEM texts. That TLS has looked at
    everything else is taken for granted.)"""
    authorities, between = _load_all(ca), _load_all(chain)[:CHAIN_MAX]
    found = _load_all(certificate)[:1]
    for _ in range(CHAIN_MAX):
        if not found:
            return False
        if any(_signed(found[0], authority) for authority in authorities):
            return True
        found = [c for c in between if _is_ca(c) and c != found[0] and _signed(found[0], c)][:1]
    return False


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False


def _load_all(pem: bytes) -> list[x509.Certificate]:
    try:
        return _parsed(pem)
    except _UNREADABLE:
        return []


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: float,
    latest_s: float = float("inf"),
    backdated: datetime.timedelta = CLOCK_SKEW,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end_s = min((now + datetime.timedelta(days=days)).timestamp(), latest_s)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - backdated)
        .not_valid_after(datetime.datetime.fromtimestamp(end_s, datetime.UTC))
    )


def _subject(name: str, kind: str) -> x509.Name:
    """`kind` keeps a CA and a party of one name apart: a certificate whose subject is its issuer counts as self-signed."""
    parts = (
        (NameOID.ORGANIZATION_NAME, f"medes {kind}"),
        (NameOID.COMMON_NAME, name[:_COMMON_NAME_CHARS_MAX]),
    )
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InvalidArgumentError("neither an address nor a host name", object=host) from error


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
