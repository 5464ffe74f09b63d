"""Requests that two servers could read in two ways: a table, name -> bytes, made from parts.

Each hides a second call in the first. Whoever reads more than one request from one of these, or
passes one on, would let a client speak with another's voice. The model of the hidden call is
`HIDDEN`, so that whoever looks at the vendor can tell.
"""

from collections.abc import Iterator

HIDDEN = "hidden"
_BODY = b'{"model":"vendor/m","max_tokens":5,"messages":[{"role":"user","content":"x"}]}'
_SIZE = len(_BODY)
_LENGTH = b"Content-Length: %d" % _SIZE
_CHUNKED = b"Transfer-Encoding: chunked"
_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (_SIZE, _BODY)
_LINE = b"POST /v1/chat/completions HTTP/1.1"
_HOST = b"Host: tollgate"


def smuggled(key: str) -> dict[str, bytes]:
    """The table, every call in it good for this API key."""
    asks = [b"Authorization: Bearer " + key.encode(), b"Content-Type: application/json"]
    inner = _BODY.replace(b"vendor/m", b"vendor/" + HIDDEN.encode())
    hidden = _head(_LINE, _HOST, *asks, b"Content-Length: %d" % len(inner)) + inner
    table: dict[str, bytes] = {}
    for name, line, headers, body in (*_lengths(), *_codings(), *_lines(), *_hosts(), *_fields()):
        assert name not in table, name
        table[name] = _head(line, *headers, *asks) + body + hidden
    for name, body in _chunks():
        table[f"chunks: {name}"] = _head(_LINE, _HOST, *asks, _CHUNKED) + body + hidden
    for name, ending in (("LF", b"\n"), ("CR", b"\r"), ("LF CR", b"\n\r"), ("CR CR LF", b"\r\r\n")):
        for place, cut in (("first line", 1), ("every line", 99)):
            whole = _head(_LINE, _HOST, *asks, _LENGTH)
            table[f"ends: {place} ends in {name}"] = (
                whole.replace(b"\r\n", ending, cut) + _BODY + hidden
            )
    return table


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", b""])


_Case = tuple[str, bytes, tuple[bytes, ...], bytes]


def _lengths() -> Iterator[_Case]:
    """One length, and another reading of it."""
    for text in (
        *("+%d", "-%d", "0x%x", "%d ,%d", "%d, %d", "%d,", ",%d", "%d %d", "%d;", "%d.0", "%de0"),
        *('"%d"', "%d\x0b", "\x0c%d", "%d\x00", "%d_0", "1_%d", "%da", "a%d", "%d\xa0", "\xa0%d"),
        *("(%d)", "[%d]", "%d=", "\x00%d", "%d\t1", "%d\r1", "%d\n1", "0o%o", "0b%d", "%%%d"),
    ):
        made = text.replace("%%", "\x01").replace("%x", format(_SIZE, "x")).replace("%o", "116")
        made = made.replace("%d", str(_SIZE)).replace("\x01", "%")
        value = made.encode("latin-1")
        yield f"length: {text!r}", _LINE, (_HOST, b"Content-Length: " + value), _BODY
    for name, value in (
        ("nothing", b""),
        ("a space", b" "),
        ("a word", b"chunked"),
        ("2^64", b"18446744073709551616"),
        ("2^64 more", b"%d" % (2**64 + _SIZE)),
        ("below zero", b"-1"),
        ("Arabic digits", "١٢".encode()),
        ("full-width digits", "７８".encode()),
        ("infinite", b"inf"),
    ):
        yield f"length: {name}", _LINE, (_HOST, b"Content-Length: " + value), _BODY
    for name, lines in (
        ("twice, other", (_LENGTH, b"Content-Length: 0")),
        ("twice, other first", (b"Content-Length: 0", _LENGTH)),
        ("twice, equal", (_LENGTH, _LENGTH)),
        ("twice, one in capitals", (_LENGTH, _LENGTH.upper())),
        ("twice, one empty", (_LENGTH, b"Content-Length:")),
        ("three times", (_LENGTH, _LENGTH, _LENGTH)),
    ):
        yield f"length: {name}", _LINE, (_HOST, *lines), _BODY


def _codings() -> Iterator[_Case]:
    """Chunks, and another reading of where they end."""
    for name, first, second in (
        ("length first", _LENGTH, _CHUNKED),
        ("chunks first", _CHUNKED, _LENGTH),
        ("no length", b"Content-Length: 0", _CHUNKED),
        ("no length, chunks first", _CHUNKED, b"Content-Length: 0"),
        ("a length of the chunks", b"Content-Length: %d" % len(_CHUNKS), _CHUNKED),
        ("a length of 4", b"Content-Length: 4", _CHUNKED),
        ("capitals", _LENGTH.upper(), _CHUNKED.upper()),
        ("small letters", _LENGTH.lower(), _CHUNKED.lower()),
        ("identity", _LENGTH, b"Transfer-Encoding: identity"),
        ("gzip", _LENGTH, b"Transfer-Encoding: gzip"),
        ("nothing", _LENGTH, b"Transfer-Encoding:"),
        ("a tab", _LENGTH, b"Transfer-Encoding:\tchunked"),
    ):
        for version in (b"1.1", b"1.0"):
            line = _LINE.replace(b"1.1", version)
            shown = f"both: {name}, HTTP/{version.decode()}"
            yield shown, line, (_HOST, first, second), _CHUNKS
    for value in (
        *(b"xchunked", b"chunkedx", b"chunked, identity", b"identity, chunked", b"gzip, chunked"),
        *(b"chunked, chunked", b"chunked,", b",chunked", b"chunked;q=1", b'"chunked"', b"chunk"),
        *(b"\x0bchunked", b"chunked\x0b", b"\x0cchunked", b"chunked\x00", b"\x00chunked"),
        *(b"identity", b"cow", b"compress", b"deflate", b"gzip", b"trailers", b"chunked x"),
        *(b"chunked\xa0", b"\xa0chunked", b"'chunked'", b"chunked\r\n chunked", b"\r\n chunked"),
        *(b"chu\nnked", b"chunked\rX: y", b"\xff\xfechunked", b"chunKed\xe2\x84\xaa"),
        *("chun\u212aed".encode(), b"none", b"0", b"chunked, cow", b"cow, chunked"),
    ):
        yield f"coding: {value!r}", _LINE, (_HOST, b"Transfer-Encoding: " + value), _CHUNKS
    for name, lines in (
        ("twice", (_CHUNKED, _CHUNKED)),
        ("twice, one identity", (_CHUNKED, b"Transfer-Encoding: identity")),
        ("twice, identity first", (b"Transfer-Encoding: identity", _CHUNKED)),
        ("twice, one empty", (_CHUNKED, b"Transfer-Encoding:")),
        ("a space before the colon", (b"Transfer-Encoding : chunked",)),
        ("a tab before the colon", (b"Transfer-Encoding\t: chunked",)),
        ("a space before the name", (b" Transfer-Encoding: chunked",)),
        ("a zero in the name", (b"Transfer\x00-Encoding: chunked",)),
        ("a zero behind the name", (b"Transfer-Encoding\x00: chunked",)),
        ("a line feed in the name", (b"X: y\nTransfer-Encoding: chunked",)),
        ("a return in the name", (b"X: y\rTransfer-Encoding: chunked",)),
        ("a folded name", (b"Transfer-Encoding\r\n : chunked",)),
    ):
        yield f"coding: {name}", _LINE, (_HOST, *lines), _CHUNKS


def _lines() -> Iterator[_Case]:
    """First lines: who is asked for what, in which version."""
    path = b"/v1/chat/completions"
    for line in (
        *(b"POST %b HTTP/2.0", b"POST %b HTTP/1.2", b"POST %b HTTP/0.9", b"POST %b HTTP/3.0"),
        *(b"POST %b HTTP/1.10", b"POST %b HTTP/11"),
        *(b"POST %b HTTP/1", b"POST %b HTTP/1.", b"POST %b"),
        *(b"POST %b http/1.1", b"POST %b HTTPS/1.1", b"POST %b XTTP/1.1", b"POST %b HTTP/1.1 x"),
        *(b"POST %b HTTP/-1.1", b"POST %b HTTP/+1.1", b"POST %b HTTP/1,1", b"POST %b HTTP 1.1"),
        *(b"POST %b ICE/1.0", b"POST %b RTSP/1.0"),
        *(b"POST %b HTTP/1.1\x00", b"POST %b HTTP/1.1\x0b"),
        *(b"POST\t%b\tHTTP/1.1", b"POST %b\tHTTP/1.1", b" POST %b HTTP/1.1"),
        *(b"POST\x00 %b HTTP/1.1", b"POST %b \x00HTTP/1.1", b"POST\x0b%b HTTP/1.1", b"%b HTTP/1.1"),
        *(b"post %b HTTP/1.1", b"POST: %b HTTP/1.1", b"PO ST %b HTTP/1.1", b"POSTS %b HTTP/1.1"),
        *(b"P\xd6ST %b HTTP/1.1", b"\xefPOST %b HTTP/1.1"),
        *(b'"POST" %b HTTP/1.1', b"PRI * HTTP/2.0"),
        *(b"POST http://tollgate%b HTTP/1.1", b"POST https://tollgate%b HTTP/1.1"),
        *(b"POST http://evil.example%b HTTP/1.1", b"POST evil.example:80 HTTP/1.1"),
        *(b"CONNECT evil.example:443 HTTP/1.1", b"CONNECT %b HTTP/1.1", b"POST * HTTP/1.1"),
        *(b"POST file://%b HTTP/1.1", b"POST ?%b HTTP/1.1"),
        *(b"POST #%b HTTP/1.1", b"POST \\%b HTTP/1.1"),
        *(b"POST x%b HTTP/1.1", b"POST %b x HTTP/1.1"),
        *(b"POST %b\x00 HTTP/1.1", b"POST %b\r HTTP/1.1"),
        *(b"POST %b\x7f HTTP/1.1", b"POST %b\x01 HTTP/1.1", b"SOURCE %b ICE/1.0"),
    ):
        shown = line.decode("latin-1").replace("%b", "path")
        yield f"line: {shown!r}", line.replace(b"%b", path), (_HOST, _LENGTH), _BODY
    for name, headers, body in (
        ("chunks", (_CHUNKED,), _CHUNKS),
        ("chunks kept alive", (_CHUNKED, b"Connection: keep-alive"), _CHUNKS),
    ):
        yield f"line: HTTP/1.0 with {name}", _LINE.replace(b"1.1", b"1.0"), (_HOST, *headers), body


def _hosts() -> Iterator[_Case]:
    """Hosts that name somebody else, or nobody."""
    for value in (
        *(b"", b" ", b"a b", b"a,b", b"a;b", b"a/b", b"a?b", b"a#b", b"a\\b", b"user@a", b"a@b:80"),
        *(b"http://a", b"a:b", b"a:", b"a:80:80", b"a:-1"),
        *(b"a:123456", b":80", b"[", b"[]", b"[::1"),
        *(b"::1", b"[::1]x", b"[evil]", b"a%00b", b"a\x0bb", b"a\x00b", b"a\tb", b"<a>", b"a'b"),
        *(b'"a"', b"a|b", b"a`b", b"{a}", "ä".encode()),
        *(b"\xff", b".", b"-a", b"a" * 300, b"a\r\n b"),
    ):
        yield f"host: {value[:20]!r}", _LINE, (b"Host: " + value, _LENGTH), _BODY
    for name, lines in (
        ("none", ()),
        ("twice", (_HOST, b"Host: evil.example")),
        ("twice, equal", (_HOST, _HOST)),
        ("twice, one small", (_HOST, b"host: evil.example")),
        ("a space before the colon", (b"Host : tollgate",)),
        ("folded", (b"Host:", b" tollgate")),
    ):
        yield f"host: {name}", _LINE, (*lines, _LENGTH), _BODY


def _fields() -> Iterator[_Case]:
    """Header lines that are none, or that ask for what is not given."""
    for line in (
        *(b"X-A: b\r\n c", b"X-A:\r\n b", b"X-A: b\r\n\tc", b" X-A: b", b"\tX-A: b", b"X-A : b"),
        *(b"X-A\t: b", b"X A: b", b": b", b"X-A"),
        *(b"X-A;b", b"X-A\x00: b", b"X-A: \x00", b"X-A: b\x00c"),
        *(b"X-A: b\rX-B: c", b"X-A: b\nc", b"X-A: b\r"),
        *(b"X\xc4: b", b"X(A): b", b"X@A: b", b"X[A]: b"),
        *(b'"X": b', b"X/A: b", b"X=A: b", b"X,A: b"),
        *(b"X{A}: b", b"X\x7f: b", b"X-A: b\x7f", b"X-A: \x01"),
        *(b"X-A: " + b"a" * 40_000, b"X" * 40_000 + b": a", b"\r\n".join([b"X-A: b"] * 120)),
        *(b"\r\n".join([b"X-%d: " % n + b"a" * 900 for n in range(60)]), b"X-A: b\x0bc\x08"),
        *(b"Expect: 200-ok", b"Expect: 100-continue, x", b"Expect: ", b"Expect: 100-continued"),
    ):
        yield f"field: {line[:30]!r}", _LINE, (_HOST, line, _LENGTH), _BODY


def _chunks() -> Iterator[tuple[str, bytes]]:
    """Bodies whose chunks do not add up."""
    size, end = b"%x" % _SIZE, b"\r\n0\r\n\r\n"
    for written in (
        *(b"+%b", b"-%b", b"0x%b", b" %b", b"\t%b"),
        *(b"%b\x00", b"\x00%b", b"%b\x0b", b"g%b", b"%bg"),
        *(b"%b,", b'"%b"', b"1%b00000000000000000", b"ffffffffffffffff"),
        *(b"-1", b"", b"%b%b.", b"_%b"),
        *(b"%b;\n", b"%b;a\nb", b"%b;a=\rb", b"%b;\x00", b"%b\n", b"%b\r", b"%b;a\x0b\n", b"%b =1"),
    ):
        text = written.replace(b"%b", size)
        yield f"size {written!r}", text + b"\r\n" + _BODY + end
    yield "longer than said", b"%x\r\n%b" % (_SIZE - 2, _BODY) + end
    yield "shorter than said", b"%x\r\n%b" % (_SIZE + 2, _BODY) + end
    yield "no break behind the data", size + b"\r\n" + _BODY + b"0\r\n\r\n"
    yield "a line feed behind the data", size + b"\r\n" + _BODY + b"\n0\r\n\r\n"
    yield "a return behind the data", size + b"\r\n" + _BODY + b"\r0\r\n\r\n"
    yield "line feeds", (size + b"\r\n" + _BODY + end).replace(b"\r\n", b"\n")
    yield "a last size with a sign", size + b"\r\n" + _BODY + b"\r\n-0\r\n\r\n"
    yield "a last size with a line feed", size + b"\r\n" + _BODY + b"\r\n0\n\r\n"
    yield "a last chunk without its end", size + b"\r\n" + _BODY + b"\r\n0\r\nX"
    yield "a trailer without a colon", size + b"\r\n" + _BODY + b"\r\n0\r\nX-A\r\n\r\n"
    yield "a trailer with a space", size + b"\r\n" + _BODY + b"\r\n0\r\nX A: b\r\n\r\n"
    yield "a folded trailer", size + b"\r\n" + _BODY + b"\r\n0\r\nX: a\r\n b\r\n\r\n"
    yield "a trailer with a zero", size + b"\r\n" + _BODY + b"\r\n0\r\nX: \x00\r\n\r\n"
    yield "a large trailer", size + b"\r\n" + _BODY + b"\r\n0\r\nX: " + b"a" * 40_000 + b"\r\n\r\n"
    many = b"".join(b"X-%d: a\r\n" % number for number in range(200))
    yield "many trailers", size + b"\r\n" + _BODY + b"\r\n0\r\n" + many + b"\r\n"
