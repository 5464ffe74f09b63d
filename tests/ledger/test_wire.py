"""A connection lets nobody's answer go to somebody else, and speaks to every kind of server."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ledger.wire import Address, Answers, Wire, WireError, packed
from tests.ledger.by_hand import serving
from tests.ledger.own_valkey import OwnValkey


async def ask(wire: Wire, *commands: tuple[str, ...]) -> Answers:
    """What the server answers."""
    answered: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
    wire.send(b"".join(map(packed, commands)), len(commands), answered.set_result)
    async with asyncio.timeout(5.0):
        return await answered


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Wire]:
    wire = await Address(url).open(timeout_s=5.0)
    try:
        yield wire
    finally:
        wire.close()
        await asyncio.sleep(0)  # the loop says goodbye to the transport


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"PING\r\n")
    writer.write(b"+PONG\r\n")


async def test_answers_come_in_order(redis_url: str) -> None:
    async with opened(redis_url) as wire:
        assert await ask(wire, ("ECHO", "a"), ("ECHO", "b")) == [b"a", b"b"]
        assert await ask(wire, ("INCR", "n"), ("INCR", "n")) == [1, 2]
        assert not wire.is_busy


async def test_an_error_is_an_answer(redis_url: str) -> None:
    async with opened(redis_url) as wire:
        first, second = await ask(wire, ("NONSENSE",), ("ECHO", "b"))

        assert "unknown command" in str(first)
        assert second == b"b"


async def test_a_password_a_user_and_a_database_are_told(tmp_path: Path) -> None:
    users = "user app on >secret ~* &* +@all"
    server = OwnValkey(tmp_path / "own", users)
    await server.start()
    try:
        async with opened(f"unix://app:secret@{server.socket}?db=3") as wire:
            assert await ask(wire, ("ACL", "WHOAMI")) == [b"app"]
            (info,) = await ask(wire, ("CLIENT", "INFO"))
            assert b" db=3 " in info
        with pytest.raises(WireError, match="WRONGPASS"):
            await Address(f"unix://app:wrong@{server.socket}").open(timeout_s=5.0)
    finally:
        server.kill()


async def test_a_server_that_wants_a_password_does_not_let_in_without(tmp_path: Path) -> None:
    server = OwnValkey(tmp_path / "own", "requirepass secret", password="secret")
    await server.start()
    try:
        async with opened(server.url) as wire:
            assert await ask(wire, ("ECHO", "a")) == [b"a"]
        with pytest.raises(WireError, match="NOAUTH"):
            await Address(f"unix://{server.socket}").open(timeout_s=5.0)
    finally:
        server.kill()


async def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WireError):
        await Address(f"unix://{tmp_path}/nobody.sock").open(timeout_s=1.0)
    with pytest.raises(WireError):
        await Address("redis://127.0.0.1:1").open(timeout_s=1.0)


async def test_silence_and_hanging_up_are_errors(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async def rude(*_: object) -> None:
        """Hang up."""

    async with serving(silent, tmp_path / "silent"):
        with pytest.raises(WireError, match="TimeoutError"):
            await Address(f"unix://{tmp_path}/silent").open(timeout_s=0.1)
    async with serving(rude, tmp_path / "rude"):
        with pytest.raises(WireError):
            await Address(f"unix://{tmp_path}/rude").open(timeout_s=5.0)


@pytest.mark.parametrize("said", [b"+one\r\n+two\r\n", b"?nonsense\r\n"])
async def test_an_answer_that_nobody_asked_for_closes_it(tmp_path: Path, said: bytes) -> None:
    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(100)
        writer.write(said)
        await reader.read()

    async with serving(talkative, tmp_path / "s"), opened(f"unix://{tmp_path}/s") as wire:
        answered: list[Answers] = []
        wire.send(packed(("PING",)), 1, answered.append)
        async with asyncio.timeout(5.0):
            await wire.closed
        assert answered == []
        wire.send(packed(("PING",)), 1, answered.append)  # nobody will answer, and nothing breaks


async def test_answers_in_pieces_are_put_together(tmp_path: Path) -> None:
    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read(100)
        for byte in b"*2\r\n:1\r\n$3\r\nabc\r\n+ok\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await reader.read()

    async with serving(halting, tmp_path / "s"), opened(f"unix://{tmp_path}/s") as wire:
        assert await ask(wire, ("A",), ("B",)) == [[1, b"abc"], b"ok"]


async def test_tls_is_verified(tmp_path: Path) -> None:
    certificate = _certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read()

    async with serving(pong, context) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"rediss://localhost:{port}?ssl_ca_certs={certificate}") as wire:
            assert not wire.closed.done()
        async with opened(f"rediss://localhost:{port}?ssl_cert_reqs=none") as wire:
            assert not wire.closed.done()
        with pytest.raises(WireError, match="SSLCertVerificationError"):
            await Address(f"rediss://localhost:{port}").open(timeout_s=5.0)


def _certificate(folder: Path) -> Path:
    """A key and a certificate that says so itself, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path
