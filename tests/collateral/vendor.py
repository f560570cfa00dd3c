"""A server on loopback that answers as vendors do, and wrongly when told so; Intel's answers out of a set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec

OK = "200 OK"


class Reply(msgspec.Struct):
    """One answer. ``cut``: bytes of the body that are promised and not sent; ``wait_s``: before it."""

    body: bytes = b""
    status: str = OK
    fields: dict[str, str] = {}
    cut: int = 0
    wait_s: float = 0.0
    drop: bool = False

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status}", f"content-length: {len(self.body) + self.cut}"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in self.fields.items()), "", ""]).encode()


class Vendor:
    """``replies`` by target (path and query): the last of a list is repeated. ``seen``: heads of requests, in order."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.seen: list[str] = []
        self.heads: list[str] = []
        self.url = ""

    def at(self, target: str, *replies: Reply) -> None:
        self.replies[target] = list(replies)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = head.split(" ")[1]
            self.seen.append(target)
            self.heads.append(head)
            ready = self.replies.get(target, [Reply(status="404 Not Found")])
            reply = ready.pop(0) if len(ready) > 1 else ready[0]
            await asyncio.sleep(reply.wait_s)
            if not reply.drop:
                writer.write(reply.head() + reply.body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    made = Vendor()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()
        await listening.wait_closed()


class Clock:
    """Time that stands still, but for sleeps: kept, in order."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def intel_replies(collateral: bytes, fmspc: str, ca: str = "platform") -> dict[str, Reply]:
    """A set in QuoteCollateralV3 form as Intel's service answers it: the four answers by target, chains in fields."""
    members = json.loads(collateral)

    def chain(name: str) -> str:
        return quote(members[name])

    def document(kind: str, raw: str, signature: str) -> bytes:
        return f'{{"{kind}":{members[raw]},"signature":"{members[signature]}"}}'.encode()

    return {
        f"/tdx/certification/v4/tcb?fmspc={fmspc}&update=standard": Reply(
            document("tcbInfo", "tcb_info", "tcb_info_signature"),
            fields={"TCB-Info-Issuer-Chain": chain("tcb_info_issuer_chain")},
        ),
        "/tdx/certification/v4/qe/identity?update=standard": Reply(
            document("enclaveIdentity", "qe_identity", "qe_identity_signature"),
            fields={"SGX-Enclave-Identity-Issuer-Chain": chain("qe_identity_issuer_chain")},
        ),
        f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der": Reply(
            bytes.fromhex(members["pck_crl"]), fields={"SGX-PCK-CRL-Issuer-Chain": chain("pck_crl_issuer_chain")}
        ),
        "/root.der": Reply(bytes.fromhex(members["root_ca_crl"])),
    }


def serve_intel(made: Vendor, collateral: bytes, fmspc: str, ca: str = "platform") -> None:
    for target, reply in intel_replies(collateral, fmspc, ca).items():
        made.at(target, reply)
