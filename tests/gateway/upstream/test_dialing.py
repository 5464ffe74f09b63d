"""Names, addresses and certificates: what must hold before a byte is sent."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.upstream import (
    Deadlines,
    Upstream,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.gateway.upstream.wire import CHAT, PATIENCE_S, PATIENT, whole, wire

YEAR_2000 = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
YEAR_2001 = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
YEAR_2100 = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


class Authority(NamedTuple):
    """A certificate authority of this test run."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    folder: Path

    @property
    def pem(self) -> Path:
        """The file that makes a client trust it."""
        path = self.folder / "ca.pem"
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def server(self, *names: str, until: dt.datetime = YEAR_2100) -> ssl.SSLContext:
        """A server with a certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vendor")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(YEAR_2000)
            .not_valid_after(until)
            .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Trusted by whoever is given its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(YEAR_2000)
        .not_valid_after(YEAR_2100)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate, tmp_path_factory.mktemp("ca"))


async def test_a_vendor_with_a_good_certificate_is_called_over_http_1_1(
    authority: Authority,
) -> None:
    upstream = Upstream(extra_ca=authority.pem)
    async with wire(upstream=upstream, tls=authority.server("localhost"), host="localhost") as ours:
        call = ours.call(CHAT._replace(body=bytes(3_000_000)))
        peer = await ours.peer()
        _, body = await peer.request()
        assert len(body) == 3_000_000
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
        assert await whole(await call) == bytes(1_000_000)
        tls = peer.writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        call = ours.call()
        await peer.answer()
        assert await whole(await call) == b"ok"


async def test_an_unknown_authority_a_wrong_name_or_an_old_certificate_is_never_spoken_to(
    authority: Authority,
) -> None:
    trusting = authority.pem
    for upstream, tls in [
        (Upstream(), authority.server("localhost")),
        (Upstream(extra_ca=trusting), authority.server("elsewhere.example")),
        (Upstream(extra_ca=trusting), authority.server("localhost", until=YEAR_2001)),
    ]:
        async with wire(upstream=upstream, tls=tls, host="localhost") as ours:
            with pytest.raises(UpstreamUnreachable) as caught:
                await ours.call()
            assert (caught.value.phase, caught.value.sent) == ("tls", False)
            assert ours.more_connections() == 0


async def test_tls_older_than_1_2_is_not_spoken(authority: Authority) -> None:
    tls = authority.server("localhost")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("ALL:@SECLEVEL=0")
    upstream = Upstream(extra_ca=authority.pem)
    async with wire(upstream=upstream, tls=tls, host="localhost") as ours:
        with pytest.raises(UpstreamUnreachable) as caught:
            await ours.call()
        assert caught.value.phase == "tls"


async def test_a_vendor_that_never_finishes_the_handshake_is_given_up(
    authority: Authority,
) -> None:
    deadlines = Deadlines(connect_s=0.1, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
    upstream = Upstream(extra_ca=authority.pem)
    async with wire(upstream=upstream) as ours:  # it speaks no TLS: it waits for a request
        ours.target = replace(ours.target, scheme="https")
        with pytest.raises(UpstreamTimeout) as caught:
            await ours.call(deadlines=deadlines)
        assert (caught.value.phase, caught.value.sent) == ("tls", False)
        assert await (await ours.peer()).is_closed_early()


async def test_a_name_that_does_not_exist_was_never_sent() -> None:
    async with wire(host="no-such-vendor.invalid") as ours:
        with pytest.raises(UpstreamUnreachable) as caught:
            await ours.call()
        assert (caught.value.phase, caught.value.sent) == ("dns", False)


async def test_an_address_that_does_not_answer_is_given_up_in_time() -> None:
    deadlines = Deadlines(connect_s=0.1, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        crowd = [socket.socket() for _ in range(4)]
        for each in crowd:  # the system accepts one or two, then drops
            each.setblocking(False)
            each.connect_ex(address)
        async with wire() as ours:
            ours.target = replace(ours.target, port=address[1])
            with pytest.raises(UpstreamTimeout) as caught:
                await ours.call(deadlines=deadlines)
            assert (caught.value.phase, caught.value.sent) == ("connect", False)
        for each in crowd:
            each.close()


async def test_a_name_with_a_dead_address_beside_a_live_one_is_reached() -> None:
    # localhost is ::1 and 127.0.0.1, and the vendor listens on the second only.
    async with wire(host="localhost") as ours:
        call = ours.call()
        await (await ours.peer()).answer()
        assert await whole(await call) == b"ok"


async def test_many_calls_at_once_share_one_lookup_and_each_gets_a_connection() -> None:
    async with wire(host="localhost") as ours:
        calls = [ours.call() for _ in range(20)]
        for _ in calls:
            ours.start((await ours.peer()).answer()).add_done_callback(lambda _: None)
        assert [await whole(answer) for answer in await asyncio.gather(*calls)] == [b"ok"] * 20


async def test_one_caller_that_leaves_does_not_take_the_lookup_from_the_others() -> None:
    async with wire(host="localhost") as ours:
        first, second = ours.call(), ours.call()
        await asyncio.sleep(0)
        first.cancel()
        await (await ours.peer()).answer()
        assert await whole(await second) == b"ok"


async def test_another_scheme_is_refused() -> None:
    async with wire() as ours:
        with pytest.raises(UpstreamRefused):
            await ours.upstream.send(CHAT, replace(ours.target, scheme="ftp"), deadlines=PATIENT)


async def test_different_origins_never_share_a_connection() -> None:
    async with wire() as ours:
        await ours.warm()
        ours.target = replace(ours.target, host="localhost")
        await ours.warm()
        assert len(ours.upstream.pools) == 2
        assert [pool.idle for pool in ours.upstream.pools.values()] == [1, 1]


async def test_an_error_never_tells_the_key() -> None:
    async with wire(host="no-such-vendor.invalid") as ours:
        with pytest.raises(UpstreamError) as caught:
            await ours.call()
        assert "sk-vendor" not in f"{caught.value!r} {caught.value.__cause__!r}"
