"""What is measured: a name, a call, and the case that it is compared with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import h11
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attest.attester import evidence_for
from attest.binding import Claims, Expected, Phase, Role, check_binding, data_hash, encode_claims
from attest.policy import first_report_policy
from attest.testkit.snp import SimulatedSnpCollector
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier
from bench.micro.evidence import snp_cases, tdx_cases
from bench.micro.parse import CORPUS, Server
from cube_mesh._fastpath import scan_request
from cube_mesh.audit.event import EventWriter
from cube_mesh.bodies import read_members
from cube_mesh.endpoints import load_endpoints
from cube_mesh.exchange import Exchange
from cube_mesh.routes import RouteTable
from cube_mesh.settings import RouteMatch, RouteRule
from tests.middleware import fakes


class Case(NamedTuple):
    """``per``: how many operations one call is. ``against``: the case whose time this one is given as a ratio of."""

    name: str
    call: Callable[[], object]
    against: str = ""
    per: int = 1


def all_cases() -> Iterator[Case]:
    yield from _parse()
    yield from _bodies()
    yield from _match()
    yield from _chain()
    yield from _binding()
    yield from _verify()
    for name, call, against in (*snp_cases(), *tdx_cases()):
        yield Case(name, call, against)


# -- HTTP --


def _h11(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    connection.next_event()


def _parse() -> Iterator[Case]:
    """Each request of the corpus once; httptools in its best use, one parser for all requests of a connection."""
    requests = list(CORPUS.values())
    scan = partial(scan_request, pos=0, max_head=32_768, max_fields=100)
    for name, parse in (("", scan), (": httptools", Server().parser.feed_data), (": h11", _h11)):
        against = "" if name else "parse a request: httptools"
        yield Case(f"parse a request{name}", partial(_each, parse, requests), against, len(requests))


def _each(call: Callable[[bytes], object], items: list[bytes]) -> None:
    for item in items:
        call(item)


def _bodies() -> Iterator[Case]:
    for size in (700, 64_000):
        body = chat_body(size)
        name = f"scan a JSON body of {size / 1000:g} kB"
        yield Case(name, partial(read_members, fakes.exchange(), body, 0, len(body)), f"{name}: msgspec")
        yield Case(f"{name}: msgspec", partial(msgspec.json.decode, body))


def chat_body(size: int) -> bytes:
    """A chat request of about ``size`` bytes: one long message, and the members that a gateway acts on after it."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky? " * (size // 16)},
    ]
    request = {"model": "smollm2", "messages": messages, "stream": True, "max_tokens": 128, "temperature": 0.2}
    return json.dumps(request).encode()


# -- the chain --


def _match() -> Iterator[Case]:
    rules = [
        RouteRule(name=f"r{n:03}", upstream="u", match=RouteMatch(path_prefix=f"/v1/tenant{n}", methods=("POST",)))
        for n in range(100)
    ]
    last = RouteRule(name="z", upstream="u", match=RouteMatch(path_prefix="/v1"))
    exchange = fakes.exchange()
    exchange.upstream_target = fakes.CHAT.encode()
    one, hundred, table = RouteTable([last]), RouteTable([*rules, last]), load_endpoints()
    assert hundred.match(exchange) is not None
    yield Case("match a route, first of 1", lambda: one.match(exchange))
    yield Case("match a route, last of 101", lambda: hundred.match(exchange))
    yield Case("find an endpoint", lambda: table.find("POST", fakes.CHAT))


def _nothing(value: object) -> None:
    return None


def _chain() -> Iterator[Case]:
    mesh = fakes.Mesh()
    mesh.sink.append = _nothing  # type: ignore[method-assign, assignment]
    head = fakes.exchange(f"/{fakes.A}{fakes.CHAT}", "POST", fakes.bearer(fakes.KEY_A)).head

    def run() -> None:
        exchange = Exchange(head, "127.0.0.1")
        assert mesh.chain.enter(exchange) is None
        mesh.chain.leave(fakes.end(exchange), _nothing)
        mesh.log.clear()

    done = Exchange(head, "127.0.0.1")
    mesh.chain.enter(done)
    done.attestation = fakes.channel()
    writer = EventWriter("spiffe://cube/proxy/p1", unsafe=False)
    fakes.end(done)
    yield Case("the whole chain, without I/O", run)
    yield Case("encode an audit event", lambda: writer.line(done))
    yield Case("count an exchange in the metrics", partial(mesh.numbers.observe, done))


# -- evidence --

NOW = 1_799_999_000.0
_CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip
_EXPECTED = Expected(**{name: getattr(_CLAIMS, name) for name in Expected.__struct_fields__})


def _binding() -> Iterator[Case]:
    encoded = encode_claims(_CLAIMS)
    yield Case("bind: encode and hash claims", lambda: data_hash(encode_claims(_CLAIMS)))
    yield Case("bind: check claims", lambda: check_binding(encoded, _EXPECTED, NOW, 7200.0))


def _verify() -> Iterator[Case]:
    for curve, digest in ((ec.SECP256R1(), hashes.SHA256()), (ec.SECP384R1(), hashes.SHA384())):
        key = ec.generate_private_key(curve)
        signature, public = key.sign(b"m" * 145, ec.ECDSA(digest)), key.public_key()
        verify = partial(public.verify, signature, b"m" * 145, ec.ECDSA(digest))
        yield Case(f"verify one ECDSA {curve.name} signature", verify)
    quote = evidence_for(SoftwareTpm(), _CLAIMS)
    report = evidence_for(SimulatedSnpCollector(b"bench" * 8), _CLAIMS)
    vtpm = Verifier(first_report_policy("vtpm"))
    snp = Verifier(first_report_policy("sev-snp"), allow_simulated=True)
    yield Case(
        "appraise vTPM evidence",
        lambda: vtpm.appraise(quote, _EXPECTED, now=NOW),
        "verify one ECDSA secp256r1 signature",
    )
    yield Case(
        "appraise SEV-SNP evidence",
        lambda: snp.appraise(report, _EXPECTED, now=NOW),
        "verify one ECDSA secp384r1 signature",
    )


def clock_ns(case: Case, calls: int) -> float:
    """Nanoseconds per operation over ``calls`` calls: CPU time of this thread, so that other programs do not count."""
    call = case.call
    start = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - start) / calls / case.per
