"""Where Redis is, as `redis.url` says it: one server, behind Sentinels, or a Cluster.

    redis://user:password@host:6379/0         one server; rediss:// with TLS; unix://user:password@/path
    redis+sentinel://user:password@host:26379,host:26379/master?sentinel_password=...
    redis+cluster://user:password@host:6379,host:6379     some of its nodes; the others are found

User and password are those of the servers that hold data. `rediss+sentinel` and `rediss+cluster`
speak TLS everywhere.
"""

from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qsl, quote, urlencode

SCHEMES = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)
_PORTS = {"sentinel": 26_379, "cluster": 6_379}


class Kind(Enum):
    """How a server is found."""

    ONE = ""  # it is where the URL says
    SENTINEL = "sentinel"  # Sentinels say which it is at the moment
    CLUSTER = "cluster"  # each partition is at the node that has its slot


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Location:
    """A parsed URL, which is never shown: there may be passwords in it.

    `hosts` are "host:port" of Sentinels or nodes; empty for one server.
    """

    kind: Kind
    url: str  # as it was given, for one server
    scheme: str = "redis"
    login: str = ""  # "user:password@", or nothing
    hosts: tuple[str, ...] = ()
    master: str = ""  # what the Sentinels call it
    query: str = ""
    sentinel_login: str = ""

    @classmethod
    def parse(cls, url: str) -> "Location":
        """Raises `ValueError` with what is wrong with it, and without its password."""
        if not url.startswith(SCHEMES):
            raise ValueError(f"must begin with {' or '.join(SCHEMES)}")
        scheme, _, kind = url.partition("://")[0].partition("+")
        if not kind:
            return cls(kind=Kind.ONE, url=url)
        # By hand: urllib knows only one host, and takes several IPv6 addresses for none.
        rest, _, query = url.partition("://")[2].partition("?")
        netloc, _, path = rest.partition("/")
        login, _, listed = netloc.rpartition("@")
        hosts = tuple(_with_port(host, _PORTS[kind]) for host in listed.split(",") if host)
        if not hosts:
            raise ValueError("names no host")
        name = path.strip("/")
        if kind == "sentinel" and not name:
            raise ValueError("does not say which master the Sentinels watch: .../mymaster")
        if kind == "cluster" and name:
            raise ValueError("has a path, and a Cluster has only one database")
        options = dict(parse_qsl(query))
        user, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
        return cls(
            kind=Kind(kind),
            url=url,
            scheme=scheme,
            login=login and f"{login}@",
            hosts=hosts,
            master=name,
            query=urlencode(options),
            sentinel_login=f"{quote(user)}:{quote(password, safe='')}@" if password else "",
        )

    @property
    def is_tls(self) -> bool:
        """Whether everything is encrypted, so that nodes go by the names in their certificates."""
        return self.scheme == "rediss"

    def node_url(self, host: str) -> str:
        """The URL of one server that holds data, at "host:port"."""
        return f"{self.scheme}://{self.login}{host}{self.query and f'?{self.query}'}"

    def sentinel_url(self, host: str) -> str:
        """The URL of one Sentinel, at "host:port". It has no databases to choose from."""
        query = urlencode([pair for pair in parse_qsl(self.query) if pair[0] != "db"])
        return f"{self.scheme}://{self.sentinel_login}{host}{query and f'?{query}'}"


def host_and_port(host: str) -> tuple[str, int]:
    """The parts of "host:port"; an IPv6 address is in brackets there, and without them here."""
    name, _, port = host.rpartition(":")
    return name.strip("[]"), int(port)


def joined(host: str, port: int | str) -> str:
    """The opposite of `host_and_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _with_port(host: str, usual: int) -> str:
    name, _, port = host.rpartition(":")
    if not name or host.endswith("]"):
        return f"{host}:{usual}"
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"has no port in {host!r}")
    return host
