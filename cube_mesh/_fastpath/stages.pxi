# The gates on their common path, and the chain that calls them. Each is the base of a class in middleware/, which says
# what the stage is for and has the rest: what is refused there is decided there.

from hashlib import sha256 as _sha256
from os import urandom as _random

from cube_mesh.ports import Grant as _Grant, Principal as _Principal

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, unsigned int largest)

cdef class PoolCore
cdef class Ending

cdef const char *HEX_DIGITS = b"0123456789abcdef"


cdef class HexIds:
    """Lower-case hex strings of ``length`` (even) digits, from one ``random(4096)`` for many. Not for secrets."""

    cdef object _random
    cdef bytes _block
    cdef Py_ssize_t _at
    cdef Py_ssize_t _bytes

    def __init__(self, Py_ssize_t length, random):
        if length <= 0 or length % 2 or length > 64:
            raise ValueError("an even number of digits, at most 64")
        self._random = random
        self._block = b""
        self._bytes = length // 2

    def __call__(self):
        return self.next()

    cdef str next(self):
        cdef str text
        cdef unsigned char *o
        cdef bytes_ptr p
        cdef Py_ssize_t i
        if self._at + self._bytes > PyBytes_GET_SIZE(self._block):
            self._block = self._random(4096)
            self._at = 0
            if PyBytes_GET_SIZE(self._block) < self._bytes:
                raise ValueError("too few random bytes")
        p = <bytes_ptr>PyBytes_AS_STRING(self._block) + self._at
        self._at += self._bytes
        text = PyUnicode_New(2 * self._bytes, 127)
        o = <unsigned char *>PyUnicode_DATA(text)
        for i in range(self._bytes):
            o[2 * i] = HEX_DIGITS[p[i] >> 4]
            o[2 * i + 1] = HEX_DIGITS[p[i] & 15]
        return text

    cdef str next_span(self):
        """The same with a last digit of 0."""
        cdef str text = self.next()
        (<unsigned char *>PyUnicode_DATA(text))[2 * self._bytes - 1] = c'0'
        return text


cdef class IdGate:
    """``request_id``: new ids, unless the request brings some (``_given``, ``_continue``)."""

    cdef HexIds _ids, _spans
    cdef double _ratio

    def __init__(self, random, double ratio):
        self._ids = HexIds(32, random)
        self._spans = HexIds(16, random)
        self._ratio = ratio

    def enter(self, Exchange exchange not None):
        cdef RequestHead head = <RequestHead?>exchange.head
        if head._find(b"x-request-id", 12) != NULL:
            exchange.request_id = self._given(head) or self._ids.next()
        else:
            exchange.request_id = self._ids.next()
        exchange.span_id = self._spans.next_span()
        if head._find(b"traceparent", 11) == NULL or not self._continue(exchange):
            exchange.trace_id = self._ids.next()
            if self._ratio > 0.0:
                exchange.sampled = self._sample(exchange.trace_id, self._ratio)


cdef bint _is_uuid(bytes_ptr p) noexcept:
    """Whether 36 bytes are a UUID in its canonical form: lower case, hyphens (RFC 9562 section 4)."""
    cdef int i
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if p[i] != c'-':
                return False
        elif not (48 <= p[i] <= 57 or 97 <= p[i] <= 102):
            return False
    return True


cdef class TenantGate:
    """``tenant``: ``[prefix]/{domain}/rest`` taken apart. ``_invalid`` makes the refusal."""

    cdef bytes _prefix
    cdef dict _exact
    cdef object _find

    def __init__(self, bytes prefix not None, dict exact not None, find):
        self._prefix = prefix
        self._exact = exact
        self._find = find

    def enter(self, Exchange exchange not None):
        cdef RequestHead head = <RequestHead?>exchange.head
        cdef bytes_ptr p = <bytes_ptr>PyBytes_AS_STRING(head.target)
        cdef Py_ssize_t at = PyBytes_GET_SIZE(self._prefix)
        cdef Py_ssize_t total = PyBytes_GET_SIZE(head.target)
        cdef Py_ssize_t path = total - PyBytes_GET_SIZE(head.query)
        cdef Py_ssize_t end = at + 37
        cdef str rest
        if (path < end or memcmp(p, PyBytes_AS_STRING(self._prefix), at) != 0 or p[at] != c'/'
                or not _is_uuid(p + at + 1) or (path > end and p[end] != c'/')):
            raise self._invalid()
        exchange.domain_id = PyUnicode_DecodeASCII(<char *>p + at + 1, 36, NULL)
        if path == end:
            exchange.upstream_target = b"/" + head.query
            return
        exchange.upstream_target = PyBytes_FromStringAndSize(<char *>p + end, total - end)
        rest = PyUnicode_DecodeASCII(<char *>p + end, path - end, NULL)
        exchange.endpoint = _endpoint(self._exact, self._find, exchange.method, rest)


cdef object _endpoint(dict exact, object find, str method, str path):
    """The row of the endpoint table: ``exact`` by method and path, the others by ``find``."""
    cdef object rows = exact.get(method), found = None if rows is None else (<dict>rows).get(path)
    return found if found is not None else find(method, path)


cdef class PeerGate:
    """``peer``: the proxy that the handshake named speaks for a domain. ``_refusal`` says what is missing, ``_new``
    makes the principal of a proxy that is not among ``principals``.
    """

    cdef readonly dict principals
    cdef dict _exact
    cdef object _find

    def __init__(self, dict exact not None, find):
        self.principals = {}
        self._exact = exact
        self._find = find

    def enter(self, Exchange exchange not None):
        cdef RequestHead head = <RequestHead?>exchange.head
        cdef bytes domain = head._get(b"x-cube-domain", 13)
        cdef object principal
        if (not exchange.peer_id or domain is None or PyBytes_GET_SIZE(domain) != 36
                or not _is_uuid(<bytes_ptr>PyBytes_AS_STRING(domain)) or head._count(b"x-cube-domain", 13) != 1):
            raise self._refusal(exchange)
        exchange.domain_id = PyUnicode_DecodeASCII(PyBytes_AS_STRING(domain), 36, NULL)
        principal = self.principals.get(exchange.peer_id)
        exchange.principal = principal if principal is not None else self._new(exchange.peer_id)
        exchange.upstream_target = head.target
        exchange.endpoint = _endpoint(self._exact, self._find, exchange.method, exchange.path)


cdef class AdmissionCounts:
    """Counters that connections keep and ``load`` asks; the rest is in ``admission``."""

    cdef public Py_ssize_t running
    cdef public Py_ssize_t max_running


cdef class LoadGate:
    """``load``: passes while no more than ``max_running`` exchanges run; else ``_refuse`` raises."""

    cdef AdmissionCounts _counts

    def __init__(self, AdmissionCounts counts not None):
        self._counts = counts

    def enter(self, Exchange exchange):
        if self._counts.running > self._counts.max_running:
            self._refuse()


cdef enum:
    MAX_DIGESTS = 4096


cdef class CredentialTable:
    """Credentials that have been judged, by their SHA-256: ``api_keys`` for good, ``tokens`` as (good until, who).

    The digests of those seen lately are found by a SipHash of the credential, under a key that this process drew.
    """

    cdef readonly dict api_keys
    cdef readonly dict tokens
    cdef object _now
    cdef bytes _key
    cdef dict _digests

    def __init__(self, dict api_keys not None, now):
        self.api_keys = api_keys
        self.tokens = {}
        self._now = now
        self._key = _random(16)
        self._digests = {}

    def known(self, bytes token not None):
        """Whose it is; None for one that is unknown or over: the subclass's ``authenticate`` tells."""
        return self._known(token)

    cdef object _known(self, bytes token):
        cdef bytes name = siphash(self._key, token)
        cdef object digest = self._digests.get(name), principal, judged
        if digest is None:
            digest = _sha256(token).digest()
            if digest not in self.api_keys and digest not in self.tokens:
                return None
            if len(self._digests) >= MAX_DIGESTS:
                self._digests.clear()
            self._digests[name] = digest
        principal = self.api_keys.get(digest)
        if principal is not None:
            return principal if principal.expires_at > self._now() else None
        judged = self.tokens.get(digest)
        return judged[1] if judged is not None and judged[0] > self._now() else None


cdef class AuthnGate:
    """``authn``: one Authorization field to the authenticator. ``_missing`` and ``_wait`` for the rest."""

    cdef object _authenticate
    cdef CredentialTable _table

    def __init__(self, authenticator):
        self._authenticate = authenticator.authenticate
        self._table = authenticator if isinstance(authenticator, CredentialTable) else None

    def enter(self, Exchange exchange not None):
        cdef object head = exchange.head, principal = None
        cdef bytes authorization
        cdef int count
        if type(head) is RequestHead:
            authorization = (<RequestHead>head)._get(b"authorization", 13)
            count = (<RequestHead>head)._count(b"authorization", 13)
        else:
            authorization, count = head.get(b"authorization"), head.count(b"authorization")
        if authorization is None or count != 1:
            raise self._missing(count > 1)
        if (self._table is not None and PyBytes_GET_SIZE(authorization) > 7
                and memcmp(PyBytes_AS_STRING(authorization), b"Bearer ", 7) == 0):
            principal = self._table._known(_piece(authorization, 7, PyBytes_GET_SIZE(authorization)))
        if principal is None:
            principal = self._authenticate(authorization)
        if type(principal) is _Principal:
            exchange.principal = principal
            return None
        return self._wait(exchange, principal)


cdef class GrantTable:
    """Grants by domain, subject and permission."""

    cdef dict _grants

    def __init__(self, dict grants not None):
        self._grants = grants

    def granted(self, principal, str domain_id, str permission):
        """The grant; None for what is refused: the subclass's ``authorize`` says why."""
        return self._granted(principal, domain_id, permission)

    cdef object _granted(self, object principal, str domain_id, str permission):
        cdef object own = principal.domain_id, members, permissions
        if own is not None and own != domain_id:
            return None
        members = self._grants.get(domain_id)
        permissions = None if members is None else (<dict?>members).get(principal.subject)
        return None if permissions is None else (<dict?>permissions).get(permission)


cdef class AuthzGate:
    """``authz``: what the authorizer grants. ``_impossible`` and ``_wait`` for the rest."""

    cdef object _authorize
    cdef GrantTable _table

    def __init__(self, authorizer):
        self._authorize = authorizer.authorize
        self._table = authorizer if isinstance(authorizer, GrantTable) else None

    def enter(self, Exchange exchange not None):
        cdef object principal = exchange.principal, endpoint = exchange.endpoint, permission, grant = None
        if principal is None or endpoint is None:
            raise self._impossible(principal)
        permission = endpoint.permission
        if self._table is not None:
            grant = self._table._granted(principal, exchange.domain_id, permission)
        if grant is None:
            grant = self._authorize(principal, exchange.domain_id, permission)
        if type(grant) is _Grant:
            exchange.grant = grant
            return None
        return self._wait(exchange, grant)


cdef object _UNKNOWN = object()


cdef class KnownRoutes:
    """What ``_search`` answered before, by all that it looks at: method, domain and target. ``keep`` is False for rules
    that read fields, too."""

    cdef readonly dict known
    cdef readonly bint keep
    cdef Py_ssize_t _most
    cdef Py_ssize_t _longest

    def __init__(self, bint keep, Py_ssize_t most, Py_ssize_t longest):
        """``most`` answers for targets of at most ``longest`` bytes."""
        self.known = {}
        self.keep = keep
        self._most = most
        self._longest = longest

    def match(self, exchange):
        """The first rule whose every test holds, or None."""
        return self._match(<Exchange?>exchange) if self.keep else self._search(exchange)

    cdef object _match(self, Exchange exchange):
        cdef tuple key = (exchange.method, exchange.domain_id, exchange.upstream_target)
        cdef object route = self.known.get(key, _UNKNOWN)
        if route is _UNKNOWN:
            route = self._search(exchange)
            if len(exchange.upstream_target) <= self._longest:
                if len(self.known) >= self._most:
                    self.known.clear()
                self.known[key] = route
        return route


cdef class RouteGate:
    """``route``: the rule that takes the request. ``_no_route`` makes the refusal."""

    cdef object _search
    cdef KnownRoutes _table

    def __init__(self, source):
        self._search = source.match
        self._table = source if isinstance(source, KnownRoutes) and source.keep else None

    def enter(self, Exchange exchange not None):
        cdef object route
        route = self._table._match(exchange) if self._table is not None else self._search(exchange)
        if route is None:
            raise self._no_route()
        exchange.route = route


cdef class ForwardGate:
    """``forward``: the target of the route; ``_unfit`` decides about a coding, a length or a missing target."""

    cdef object _targets
    cdef long long _max_json
    cdef long long _max_body

    def __init__(self, targets, long long max_json, long long max_body):
        self._targets = targets
        self._max_json = max_json
        self._max_body = max_body

    def limit(self, bint json):
        """Bytes of a body, when it is read whole and when it streams."""
        return self._max_json if json else self._max_body

    def enter(self, Exchange exchange not None):
        cdef RequestHead head = <RequestHead?>exchange.head
        cdef object endpoint = exchange.endpoint, route = exchange.route, target
        cdef bint json = endpoint is not None and endpoint.body == "json"
        if ((json and head._find(b"content-encoding", 16) != NULL)
                or head.content_length > (self._max_json if json else self._max_body)):
            self._unfit(exchange, json)
        target = self._targets.get(route.upstream) if route is not None else None
        if target is None:
            raise self._no_target()
        exchange.target = target


cdef class ChainCore:
    """Gates and observers in order, on the path where none refuses, waits or breaks."""

    cdef public tuple _gates
    cdef public tuple _observers
    cdef public Py_ssize_t in_flight

    def enter(self, Exchange exchange not None):
        """None when every gate passed, else the answer, or an awaitable of either. Never raises; the caller owes one
        ``leave`` either way.
        """
        return self._enter(exchange)

    cdef object _enter(self, Exchange exchange):
        cdef object gate, verdict
        self.in_flight += 1
        try:
            for gate in self._gates:
                verdict = gate(exchange)
                if verdict is not None:
                    return self._stopped(exchange, gate, verdict)
        except Exception as error:
            return self._refuse(exchange, error)
        return None

    def leave(self, Exchange exchange not None, done):
        """Run every observer, then call ``done`` once: with None, or with the CubeMeshError of an observer (audit: what
        is not on record is not answered). In the common case that is before this returns.

        A second call for the same exchange runs nothing: whoever ended it first has recorded it.
        """
        self._left(exchange, done)

    cdef int _left(self, Exchange exchange, object done) except -1:
        if exchange.left:
            done(None)
            return 0
        exchange.left = True
        self.in_flight -= 1
        return self._leave(exchange, 0, None, done)

    cdef int _leave(self, Exchange exchange, Py_ssize_t at, object refusal, object done) except -1:
        cdef tuple observers = self._observers
        cdef object recording
        cdef ChainRest rest
        while at < PyTuple_GET_SIZE(observers):
            try:
                recording = observers[at](exchange)
            except Exception as error:
                refusal = self._observer_failed(exchange, at, error) or refusal
                recording = None
            at += 1
            if recording is not None:
                rest = ChainRest.__new__(ChainRest)
                rest._chain, rest._exchange, rest._at, rest._refusal, rest._done = self, exchange, at, refusal, done
                if isinstance(recording, EventQueue):
                    (<EventQueue>recording)._done.append(rest)
                else:
                    recording.then(rest)
                return 0
        if type(done) is Ending:
            (<Ending>done)._over(refusal)
        else:
            done(refusal)
        return 0


@cython.internal
@cython.final
@cython.freelist(64)
cdef class ChainRest:
    """What follows when a Recording is done: the observers behind it, then ``done``."""

    cdef ChainCore _chain
    cdef Exchange _exchange
    cdef Py_ssize_t _at
    cdef object _refusal
    cdef object _done

    def __call__(self, error):
        self._over(error)

    cdef int _over(self, object error) except -1:
        cdef object refusal = self._refusal
        if error is not None:
            refusal = self._chain._observer_failed(self._exchange, self._at - 1, error) or refusal
        return self._chain._leave(self._exchange, self._at, refusal, self._done)


def settle(list waiting not None, refusal, failed):
    """Tell all who wait for their event. ``failed(error)`` is told of a bug of one; it does not hold up the others."""
    for done in waiting:
        try:
            if type(done) is ChainRest:
                (<ChainRest>done)._over(refusal)
            else:
                done(refusal)
        except Exception as error:
            failed(error)


cdef class HopHead:
    """How a request's head is written for one upstream; ``fixed`` are field lines that never change."""

    cdef bytes _fixed
    cdef FieldSet _drop
    cdef bint _mesh
    cdef PoolCore _pool
    cdef LineBuffer _out

    def __init__(self, bytes fixed not None, FieldSet drop not None, bint mesh, PoolCore pool):
        self._pool = pool
        self._fixed = fixed
        self._drop = drop
        self._mesh = mesh
        self._out = LineBuffer.__new__(LineBuffer)

    def head(self, Exchange exchange not None, long long length, bytes data not None=b"", Py_ssize_t pos=0,
             Py_ssize_t end=0):
        """The request head for this hop with ``data[pos:end]`` behind it; ``length`` as RequestHead.render."""
        return self._head(exchange, length, data, pos, end)

    cdef bytes _head(self, Exchange exchange, long long length, bytes data, Py_ssize_t pos, Py_ssize_t end):
        cdef LineBuffer out = self._out
        cdef RequestHead head = <RequestHead?>exchange.head
        out._size = 0
        out.put(self._fixed)
        out.raw(b"x-request-id: ", 14)
        _ascii(out, exchange.request_id)
        out.raw(b"\r\ntraceparent: 00-", 18)
        _ascii(out, exchange.trace_id)
        out.raw(b"-", 1)
        _ascii(out, exchange.span_id)
        if exchange.span_id:
            out._size -= 1
        out.raw(b"1-01\r\n" if exchange.sampled else b"1-00\r\n", 6)
        if exchange.tracestate:
            out.raw(b"tracestate: ", 12)
            _ascii(out, exchange.tracestate)
            out.raw(b"\r\n", 2)
        if self._mesh:
            out.raw(b"x-cube-domain: ", 15)
            _ascii(out, exchange.domain_id)
            out.raw(b"\r\n", 2)
        return head._render(exchange.upstream_target or head.target, out._data, out._size, self._drop, length,
                            data, pos, end)


cdef int _ascii(LineBuffer out, str text) except -1:
    """Text of our own making or checked before: ASCII. UnicodeEncodeError for any other, TypeError for None."""
    if text is None:  # an operator's own stage may set any field of an exchange
        raise TypeError("a text is missing")
    if not PyUnicode_IS_COMPACT_ASCII(text):
        return out.put(text.encode("ascii"))
    return out.raw(<const char *>PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))
