"""The node's settings: frozen structs, at the bottom of the map so that every room can take its own.

``config.py`` fills them from flags, environment, TOML and these defaults, in that order. Each field's comment is its
documentation (docs/settings.md is made from it). Quantities carry their unit. Paths are relative to the file that names
them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are errors."""


class EdgeTls(Section, frozen=True, kw_only=True):
    """TLS at the tenants' side of a proxy. On when there is a certificate; SIGHUP reads the files again."""

    cert_file: str = ""  # certificate and its chain, PEM
    key_file: str = ""  # its key, PEM
    min_version: Literal["1.2", "1.3"] = "1.2"  # least TLS version
    ciphers: str = "ECDHE+AESGCM:ECDHE+CHACHA20"  # suites of TLS 1.2, as OpenSSL writes them; those of 1.3 are its own
    client_ca_file: str = ""  # CAs of client certificates; a certificate that is shown must be of these
    require_client_certificate: bool = False  # turn away clients that show none
    handshake_s: float = 10.0  # accept to the end of the handshake, a PROXY header included
    warn_before_expiry_s: float = 1_209_600.0  # warn daily when the certificate has less time left


class Listen(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"  # address to accept on; a plain listener starts only on loopback
    port: int = 0  # 0 = the role's default: 8900 proxy, 8901 agent
    path_prefix: str = ""  # stripped before the tenant segment, for example "/proxy"
    backlog: int = 1024  # connections that the kernel keeps until they are accepted
    unsafe_plain_non_loopback: bool = False  # accept plaintext from other machines (behind a TLS-terminating peer)
    trusted_peers: tuple[str, ...] = ()  # addresses or networks that may say who the client is; nobody else is believed
    forwarded: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"  # the field that they write; no other counts
    proxy_protocol: bool = False  # every connection begins with a PROXY header (v1 or v2), of a trusted peer
    tls: EdgeTls = EdgeTls()
    pipelining: bool = True  # answer requests sent before the last answer, in order; false: drop them and close


class Limits(Section, frozen=True, kw_only=True):
    max_head_bytes: int = 32_768  # request or response head
    max_fields: int = 100  # field lines of one head
    max_json_body: int = 4_194_304  # JSON bodies that are read whole; larger = 413
    max_body_bytes: int = 1_073_741_824  # any other request body
    max_connections: int = 10_000  # open client connections; more are answered 503, or closed before a TLS handshake
    max_connections_per_address: int = 1_000  # of one client address; listen.trusted_peers are not limited
    max_in_flight: int = 2_000  # requests being served at the same time; more are answered 503
    min_body_bytes_per_s: int = 256  # a streamed request body that is slower, averaged over timeouts.body_s, gets 408
    max_linger_bytes: int = 4_194_304  # read and dropped behind a refusal, so that the client sees the answer
    write_high_water: int = 65_536  # pause the producer above this many unsent bytes
    write_low_water: int = 16_384  # resume it below this many


class Timeouts(Section, frozen=True, kw_only=True):
    head_s: float = 10.0  # first byte of a request to the end of its head
    body_s: float = 60.0  # to the end of a body that is read whole; the window for the pace of a streamed one
    idle_s: float = 120.0  # keep-alive between requests; longer than a peer's pool idle time
    connect_s: float = 15.0  # upstream connect, TLS and attestation together
    first_byte_s: float = 300.0  # request sent to response head
    stream_gap_s: float = 120.0  # between two pieces of a response body
    write_s: float = 30.0  # unsent bytes stay above limits.write_low_water: the reader, client or upstream, is too slow
    total_s: float = 1_800.0  # end of the head to the end of the answer, streams included
    linger_s: float = 5.0  # a client that was refused while it still sends is read out for at most this long
    drain_s: float = 30.0  # SIGTERM to exit


class Pool(Section, frozen=True, kw_only=True):
    max_idle_per_host: int = 100  # warm connections that are kept
    idle_timeout_s: float = 90.0  # closed after this time without a request
    max_connections_per_host: int = 1_000  # open at the same time; more requests get 503


class BackendTls(Section, frozen=True, kw_only=True):
    """TLS from the agent (or the proxy, for an unattested target) to a backend; used when the URL is https."""

    ca_file: str = ""  # empty: the system's
    server_name: str = ""  # empty: the URL's host
    cert_file: str = ""  # client certificate, PEM
    key_file: str = ""  # its key, PEM


class Upstream(Section, frozen=True, kw_only=True):
    """One target. An ``atls`` target needs ``node_id`` and ``policy``; any other must be on loopback or use TLS."""

    name: str  # by which routes name it
    url: str  # http://host:port, https://host:port, or atls://host:port for an attested agent
    node_id: str = ""  # spiffe://<trust-domain>/agent/<id> expected at the other end
    policy: str = ""  # evidence policy file; empty with atls = start-up error
    mode: Literal["session", "quote", "cert"] = "session"  # a quote per interval, or per connection; "cert" is refused
    server_name: str = ""  # SNI; empty: the URL's host
    api_key_file: str = ""  # sent as "Authorization: Bearer"; the backend's own key
    api_key: str = ""  # same, from the environment
    unsafe_plain_non_loopback: bool = False  # allow http to another machine
    tls: BackendTls = BackendTls()
    pool: Pool = Pool()


class RouteMatch(Section, frozen=True, kw_only=True):
    path: str = ""  # exact, after the domain is stripped
    path_prefix: str = ""  # by whole segments
    path_regex: str = ""  # RE2, anchored at both ends
    methods: tuple[str, ...] = ()  # any of these; empty = all
    headers: dict[str, str] = {}  # lower-case name -> exact value
    domains: tuple[str, ...] = ()  # domain ids; empty = all


class RouteRule(Section, frozen=True, kw_only=True):
    name: str  # shown in logs, metrics and audit events
    upstream: str  # name of the upstream that takes the request
    priority: int = 0  # higher first, then by name
    match: RouteMatch = RouteMatch()


class Member(Section, frozen=True, kw_only=True):
    subject: str  # as an API key or a token names it
    role: str  # a role of policies/authz/roles.toml


class Domain(Section, frozen=True, kw_only=True):
    id: str  # canonical UUID
    name: str = ""  # for people
    members: tuple[Member, ...] = ()
    evidence_policy: str = ""  # file; agents must pass it, too, before they see a byte of this domain; empty: none
    capture_content: bool = False  # reserved: a tenant's opt-in; nothing reads content without it


class ApiKey(Section, frozen=True, kw_only=True):
    id: str  # shown in audit events
    hash: str  # sha256:<hex> of the whole key; `cube-mesh admin key` makes both
    subject: str  # who uses it; a member of the domain
    domain: str  # the one domain that it opens
    expires: str = ""  # RFC 3339; empty = never


class JwtIssuer(Section, frozen=True, kw_only=True):
    issuer: str  # must equal the claim "iss"
    audience: str  # must be in the claim "aud"
    algorithms: tuple[str, ...]  # accepted "alg" values; public-key ones, or HS ones alone
    jwks_file: str = ""  # the issuer's keys; give exactly one of jwks_file, jwks_url, key_file
    jwks_url: str = ""  # the same, fetched; https, or http on loopback
    key_file: str = ""  # PEM public key (RS/ES/EdDSA) or raw secret (HS)
    leeway_s: float = 30.0  # clock difference that is tolerated
    jwks_refresh_s: float = 300.0  # how often jwks_url is fetched
    subject_prefix: str = ""  # put before "sub", for example "corp:"; with several issuers each needs its own
    required_typ: str = ""  # claim "type" that must be present with this value: tokens for other uses do not log in


class Identity(Section, frozen=True, kw_only=True):
    domains: tuple[Domain, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()
    jwt: tuple[JwtIssuer, ...] = ()
    cache_entries: int = 10_000  # verified tokens that are remembered; 0 = none
    cache_ttl_s: float = 30.0  # for at most this long


class Authz(Section, frozen=True, kw_only=True):
    endpoints_file: str = ""  # empty: the built-in policies/authz/endpoints.toml
    roles_file: str = ""  # empty: the built-in policies/authz/roles.toml


class Audit(Section, frozen=True, kw_only=True):
    """The trail: docs/audit.md tells what each durability promises. Sizes are of the node, its workers together."""

    path: str = "var/audit.jsonl"  # JSON lines, appended; other workers' and full files stand beside it
    durability: Literal["write", "batch", "each", "async"] = "write"  # of an event when its answer ends
    on_error: Literal["refuse", "shed"] = "refuse"  # cannot be written: 503, or answer without a record and count that
    rotate_bytes: int = 268_435_456  # a worker's file that would grow above this is set aside
    rotate_s: float = 86_400.0  # so is one whose first event is older; looked at once a minute
    max_spool_bytes: int = 68_719_476_736  # all files together; more cannot be written
    remove_oldest: bool = False  # instead remove the oldest files that were set aside
    max_unwritten_bytes: int = 16_777_216  # with "async": answered and not yet on the disk; more cannot be written


class Log(Section, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"  # least important level that is logged
    format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal
    requests: bool = True  # one line for each request


class Tracing(Section, frozen=True, kw_only=True):
    otlp_endpoint: str = ""  # http://host:4318/v1/traces; empty = off
    sample_ratio: float = 1.0  # of traces that arrive without a decision; failed requests always
    service_name: str = ""  # empty: cube-mesh


class Metrics(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"  # loopback; metrics and health have no authentication
    port: int = 0  # 0 = role default: 8910 proxy, 8911 agent; -1 = off


class Mesh(Section, frozen=True, kw_only=True):
    """This node's place in the mesh: identity, CA, and who may call it."""

    trust_domain: str = "cube"  # first part of every SPIFFE id of the mesh
    node_id: str = ""  # id part of spiffe://<trust-domain>/<role>/<id>
    ca_file: str = ""  # mesh CA bundle
    cert_file: str = ""  # a proxy's leaf, from `cube-mesh ca issue`
    key_file: str = ""  # its key; mode 0600
    allowed_proxies: tuple[str, ...] = ()  # agent: full SPIFFE ids; empty = start-up error


class AzureAttester(Section, frozen=True, kw_only=True):
    """For the attesters "azure" and "maa", on a confidential VM of Azure."""

    metadata_url: str = "http://169.254.169.254"  # the VM's metadata service: the chip's certificates, TDX quotes
    maa_url: str = ""  # "maa": the attestation provider, https, without a slash at its end


class GoogleAttester(Section, frozen=True, kw_only=True):
    """For the attester "gcp", in Confidential Space, and those of any instance of Google Cloud."""

    audience: str = ""  # "gcp": whom the token is for, as the proxy's policy names it
    token_type: Literal["OIDC", "PKI"] = "OIDC"  # verified by Google's key set, or by the chain that it carries
    launcher_socket: str = "/run/container_launcher/teeserver.sock"  # where the launcher listens
    ak_algorithm: Literal["ecc", "rsa"] = "ecc"  # "gce-vtpm": which of Google's attestation keys quotes
    launch_endorsement_file: str = ""  # "sev-snp" and "tdx": Google's of the firmware, where the host hands out none


Attester: TypeAlias = Literal[
    "",
    "none",
    "vtpm",
    "gce-vtpm",
    "sev-snp",
    "sev-snp+vtpm",
    "tdx",
    "tdx+vtpm",
    "azure",
    "maa",
    "gcp",
    "scheme",
    "simulated-sev-snp",
    "simulated-tdx",
]


class Attestation(Section, frozen=True, kw_only=True):
    attester: Attester = ""  # what evidence is made of; an agent must choose, a proxy says "none"
    schemes: tuple[str, ...] = ()  # schemes of installed packages that policies may name; "scheme": the one of these
    tsm_dir: str = "/sys/kernel/config/tsm/report"  # "sev-snp" and "tdx": the kernel's configfs-tsm
    chip_cert_file: str = ""  # "sev-snp": VCEK or VLEK and its chain, sent where the host hands out none
    tcti: str = "device:/dev/tpmrm0"  # how the TPM is reached; swtpm:path=... in development
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # PCRs that are quoted
    ak_handle: str = ""  # persistent AK; empty: an AK is created at start
    ak_context_file: str = ""  # keeps an AK over restarts, wrapped by the TPM, so that a policy can pin it
    ak_cert_file: str = ""  # certificate chain of the AK, sent with the evidence; of a cloud's AK, its intermediates
    event_log_file: str = ""  # firmware's log of the quoted PCRs or RTMRs, for policies that replay it; up to 1 MiB
    azure: AzureAttester = AzureAttester()
    gcp: GoogleAttester = GoogleAttester()
    endpoint_deadline_s: float = 10.0  # all attempts to ask a metadata or attestation service one thing
    simulated_seed_file: str = ""  # simulated-...: the test root and chip, shared with the policy's maker
    interval_s: float = 600.0  # re-attest
    max_age_s: float = 3600.0  # hard age of an attested connection
    leaf_lifetime_s: float = 3600.0  # of an agent's self-signed leaf, renewed at half of it; at most 3600
    handshake_timeout_s: float = 15.0  # TLS and attestation of one connection
    max_concurrent_quotes: int = 1  # a TPM makes one at a time


class Collateral(Section, frozen=True, kw_only=True):
    """What judges of evidence need beside it: kept in a cache and refreshed. Only what is named here is fetched."""

    cache_dir: str = ""  # made with mode 0700; empty: no collateral, so TDX quotes and tokens by key set are refused
    offline: bool = False  # never fetch; the cache is filled by `cube-mesh attest collateral fetch`
    tdx_platforms: tuple[str, ...] = ()  # FMSPC (12 hex digits) of each kind of platform, or FMSPC/processor
    snp_products: tuple[str, ...] = ()  # Milan, Genoa, Turin: whose revocation list is kept
    on_demand: bool = False  # fetch also what a peer's evidence lacks: VCEKs of snp_products, any TDX platform's set
    token_issuers: tuple[str, ...] = ()  # whose keys are kept, by OpenID Connect discovery; https
    amd_url: str = "https://kdsintf.amd.com"  # or a mirror
    intel_url: str = "https://api.trustedservices.intel.com"  # or a mirror
    intel_root_crl_url: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"  # or a mirror
    deadline_s: float = 30.0  # all attempts to fetch one item together


class Cors(Section, frozen=True, kw_only=True):
    """Web pages that may call the API from a browser. A proxy's."""

    allowed_origins: tuple[str, ...] = ()  # like "https://app.example", or "*" for any; empty: CORS is off
    allowed_headers: tuple[str, ...] = ("authorization", "content-type", "x-request-id", "x-stainless-*")  # may be sent
    exposed_headers: tuple[str, ...] = ("x-request-id", "retry-after")  # of answers, for pages to read
    max_age_s: float = 600.0  # a browser asks again after this time


class Settings(Section, frozen=True, kw_only=True):
    workers: int = -1  # processes that serve; -1 = one for each core; 0 = all in one process, for development and tests
    unsafe_allow_simulated: bool = False  # development: simulated evidence passes, on loopback, marked everywhere
    listen: Listen = Listen()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    upstreams: tuple[Upstream, ...] = ()
    routes: tuple[RouteRule, ...] = ()
    identity: Identity = Identity()
    authz: Authz = Authz()
    cors: Cors = Cors()
    audit: Audit = Audit()
    log: Log = Log()
    tracing: Tracing = Tracing()
    metrics: Metrics = Metrics()
    mesh: Mesh = Mesh()
    attestation: Attestation = Attestation()
    collateral: Collateral = Collateral()
    stages: tuple[str, ...] = ()  # own stages to put into the chain: names of entry points, group cube_mesh.stages
