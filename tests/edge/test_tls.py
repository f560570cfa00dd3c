"""TLS at the tenants' side: what is negotiated, whose certificates count, and how files are replaced under load."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.demo.backend import Script, ScriptedBackend
from cube_mesh.errors import ConfigError
from cube_mesh.settings import EdgeTls
from cube_mesh.tls.edge import EdgeCertificate, edge_context
from tests.edge.certificates import Issued, issue
from tests.edge.door import answer, ask, descriptors, metric, open_door, request, status, until
from tests.support.mesh import read_events
from tests.support.node import Node


class Files:
    """A CA, a server certificate of it, and what clients need."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = issue("edge ca")
        self.write("server", issue("server", self.ca))
        self.ca.write(directory / "ca.crt", directory / "ca.key")

    def write(self, name: str, issued: Issued) -> None:
        issued.write(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    def tls(self, **more: Any) -> dict[str, Any]:
        return {"cert_file": str(self.directory / "server.crt"), "key_file": str(self.directory / "server.key"), **more}

    def client(self, certificate: Issued | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        context.check_hostname = False
        if certificate is not None:
            self.write("client", certificate)
            context.load_cert_chain(self.directory / "client.crt", self.directory / "client.key")
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def door(files: Files, backend: ScriptedBackend, tls: dict[str, Any] | None = None, **listen: Any) -> Node:
    listen |= {"tls": tls or files.tls()}
    return open_door(files.directory / "proxy", backend.url, listen=listen)


async def test_requests_over_tls_and_no_others(files: Files, backend: ScriptedBackend) -> None:
    with door(files, backend, host="0.0.0.0") as proxy:
        for maximum, version in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
            context = files.client()
            context.maximum_version = maximum
            assert status(await ask(proxy.port, request(), tls=context)) == 200
            event = read_events(files.directory / "proxy")[-1]
            assert (event["client_tls_version"], event["client_tls_subject"]) == (version, None)
        assert await ask(proxy.port, request()) == b"", "plain bytes"
        assert metric(proxy, 'cube_admissions_refused_total{limit="handshake"}') == 1
        assert metric(proxy, "cube_edge_certificate_expiry_seconds") == pytest.approx(30 * 86_400, abs=600)


async def test_old_versions_are_refused(files: Files, backend: ScriptedBackend) -> None:
    context = files.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with door(files, backend, files.tls(min_version="1.3")) as proxy:
        assert await ask(proxy.port, request(), tls=context) == b""
        assert status(await ask(proxy.port, request(), tls=files.client())) == 200


async def test_suites_of_tls_12_are_those_of_the_setting(files: Files, backend: ScriptedBackend) -> None:
    with door(files, backend, files.tls(ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")) as proxy:
        for suite, served in (("ECDHE-ECDSA-AES256-GCM-SHA384", True), ("ECDHE-ECDSA-AES128-GCM-SHA256", False)):
            context = files.client()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(suite)
            assert bool(await ask(proxy.port, request(), tls=context)) == served


@pytest.mark.parametrize("required", [False, True])
async def test_client_certificates(files: Files, backend: ScriptedBackend, required: bool) -> None:
    tls = files.tls(client_ca_file=str(files.directory / "ca.crt"), require_client_certificate=required)
    ours, strangers = issue("alice, of \u201ctests\u201d\n", files.ca), issue("mallory", issue("other ca"))
    with door(files, backend, tls) as proxy:
        assert status(await ask(proxy.port, request(), tls=files.client(ours))) == 200
        subject = read_events(files.directory / "proxy")[-1]["client_tls_subject"]
        assert subject.startswith("CN=alice") and "\n" not in subject
        assert await ask(proxy.port, request(), tls=files.client(strangers)) == b""
        assert bool(await ask(proxy.port, request(), tls=files.client())) is not required


async def test_a_proxy_header_comes_before_tls(files: Files, backend: ScriptedBackend) -> None:
    with door(files, backend, trusted_peers=["127.0.0.1"], proxy_protocol=True) as proxy:
        header = b"PROXY TCP4 9.9.9.9 10.0.0.1 4711 443\r\n"
        assert status(await ask(proxy.port, request(), tls=files.client(), before=header)) == 200
        assert read_events(files.directory / "proxy")[-1]["client_ip"] == "9.9.9.9"


async def test_a_new_certificate_reaches_new_connections_and_drops_none(files: Files, backend: ScriptedBackend) -> None:
    with door(files, backend) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=files.client())
        before = await _serial(proxy, files)
        files.write("server", issue("second", files.ca, days=60))
        proxy.popen.send_signal(signal.SIGHUP)
        await until(lambda: metric(proxy, 'cube_edge_certificate_reloads_total{result="ok"}') == 1)
        assert await _serial(proxy, files) != before
        assert metric(proxy, "cube_edge_certificate_expiry_seconds") > 50 * 86_400
        writer.write(request())
        assert status(await answer(reader)) == 200, "the connection from before"
        writer.close()


@pytest.mark.parametrize("fault", ["garbage", "key of another", "expired", "missing"])
async def test_files_that_cannot_be_used_change_nothing(files: Files, backend: ScriptedBackend, fault: str) -> None:
    with door(files, backend) as proxy:
        before = await _serial(proxy, files)
        cert = files.directory / "server.crt"
        match fault:
            case "garbage":
                cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            case "key of another":
                issue("x", files.ca).write(cert, files.directory / "unused.key")
            case "expired":
                files.write("server", issue("old", files.ca, days=-1, since_days=-9))
            case "missing":
                cert.unlink()
        proxy.popen.send_signal(signal.SIGHUP)
        await until(lambda: metric(proxy, 'cube_edge_certificate_reloads_total{result="failed"}') == 1)
        assert await _serial(proxy, files) == before
        assert status(await ask(proxy.port, request(), tls=files.client())) == 200
        await until(lambda: "was not replaced" in proxy.output)


async def test_who_does_not_finish_the_handshake_is_dropped(files: Files, backend: ScriptedBackend) -> None:
    with door(files, backend, files.tls(handshake_s=1.0)) as proxy:
        await ask(proxy.port, request(), tls=files.client())
        await until(lambda: metric(proxy, "cube_connections") == 0)
        await asyncio.sleep(0.3)  # the scrape's own connection goes
        before = descriptors(proxy.pid)
        silent = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(20)]
        for reader, writer in silent:
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
        await until(lambda: descriptors(proxy.pid) == before)
        assert metric(proxy, 'cube_admissions_refused_total{limit="handshake"}') == 20
        assert metric(proxy, "cube_connections") == 0


async def test_handshakes_count_for_the_limit_of_an_address(files: Files, backend: ScriptedBackend) -> None:
    limits = {"max_connections_per_address": 3}
    with open_door(files.directory / "proxy", backend.url, listen={"tls": files.tls()}, limits=limits) as proxy:
        silent = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(3)]
        assert await ask(proxy.port, request(), tls=files.client()) == b""
        assert status(await ask(proxy.port, request(), tls=files.client(), source="127.0.0.2")) == 200
        for _, writer in silent:
            writer.close()
        await asyncio.sleep(0.2)
        assert status(await ask(proxy.port, request(), tls=files.client())) == 200


async def test_draining_finishes_what_runs_and_drops_what_has_not_opened(
    files: Files, backend: ScriptedBackend
) -> None:
    backend.script = Script(first_byte_s=1.0)
    with door(files, backend) as proxy:
        _, idle = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=files.client())
        _, silent = await asyncio.open_connection("127.0.0.1", proxy.port)
        running = asyncio.create_task(ask(proxy.port, request(), tls=files.client()))
        await until(lambda: bool(backend.requests))
        proxy.popen.send_signal(signal.SIGTERM)
        assert status(await running) == 200
        assert await asyncio.to_thread(proxy.popen.wait, 10) == 0
        for writer in (idle, silent):
            writer.close()


# -- without a process


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ciphers": "NONSENSE"}, "listen.tls.ciphers"),
        ({"cert_file": "/nonexistent"}, "listen.tls.cert_file"),
        ({"key_file": "/nonexistent"}, "listen.tls.cert_file"),
        ({"client_ca_file": "/dev/null"}, "listen.tls.client_ca_file"),
    ],
)
def test_what_cannot_be_used_is_a_configuration_error(files: Files, changes: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EdgeCertificate(EdgeTls(**{**files.tls(), **changes}))
    assert caught.value.key == key


def test_an_encrypted_key_asks_nobody(files: Files) -> None:
    from cryptography.hazmat.primitives import serialization

    issued = issue("locked", files.ca)
    files.write("server", issued)
    pem = issued.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (files.directory / "server.key").write_bytes(pem)
    with pytest.raises(ConfigError, match="encrypted"):
        edge_context(EdgeTls(**files.tls()))


def test_it_warns_before_it_expires(files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("cube_mesh"), "propagate", True)
    EdgeCertificate(EdgeTls(**files.tls(), warn_before_expiry_s=86_400.0)).on_deadline(0.0)
    assert not caplog.records
    certificate = EdgeCertificate(EdgeTls(**files.tls(), warn_before_expiry_s=86_400.0 * 31))
    certificate.on_deadline(0.0)
    assert "expires in 30.0 days" in caplog.text and certificate.deadline > 86_000


async def _serial(proxy: Node, files: Files) -> int:
    """Serial number of the certificate that a new connection is shown."""
    from cryptography import x509

    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=files.client())
    der = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number
