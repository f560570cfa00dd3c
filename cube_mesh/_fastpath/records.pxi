# The records of an open attested channel, on the path that nearly all take: one whole record in, its plaintext to the
# inner protocol; one piece of plaintext in, its ciphertext to TCP. Everything else is tls/channel.py's.
#
# OpenSSL is the one that the cryptography package brings. Its functions are called here by the addresses that the
# package's own binding gives, on the objects that pyOpenSSL made and owns: tls/channel.py gets both, once.

ctypedef int (*tls_move)(void *end, void *data, int size) noexcept

cdef enum:
    MAX_RECORD = 16384             # plaintext of one TLS 1.3 record (RFC 8446 section 5.1)
    RECORD_SPACE = 2 * MAX_RECORD  # one record as ciphertext, and whatever small leaves with it

cdef unsigned char _RECORD[RECORD_SPACE]  # filled and copied within one call, with nothing between


cdef class ChannelCore:
    """``functions``: addresses of SSL_read, SSL_write, BIO_read and BIO_write. ``ends``: of the SSL, the BIO that it
    reads and the BIO that it writes; ``owner`` keeps them alive, and no other thread uses them.
    """

    cdef public bint _paused
    cdef public bint _closing
    cdef public bint _aligned
    cdef public object _deliver
    cdef public object _tcp_write
    cdef object _owner
    cdef void *_ssl
    cdef void *_into
    cdef void *_from
    cdef tls_move _ssl_read
    cdef tls_move _ssl_write
    cdef tls_move _bio_read
    cdef tls_move _bio_write

    def __cinit__(self, *args, **kwargs):
        self._closing = True  # until it is bound to a session, nothing passes

    def _bind(self, owner not None, tuple functions not None, tuple ends not None):
        """Once, before any other call. ValueError for an address of 0."""
        cdef size_t read, write, take, put, ssl, into, out
        read, write, take, put = functions
        ssl, into, out = ends
        if self._owner is not None or not (read and write and take and put and ssl and into and out):
            raise ValueError("a channel stands on one session, and on one library")
        self._ssl_read, self._ssl_write = <tls_move>read, <tls_move>write
        self._bio_read, self._bio_write = <tls_move>take, <tls_move>put
        self._ssl, self._into, self._from = <void *>ssl, <void *>into, <void *>out
        self._owner = owner
        self._closing = False

    def get_buffer(self, sizehint):
        """Where the next read goes; at most 64 KiB."""
        return _READ

    def buffer_updated(self, Py_ssize_t size):
        """That many bytes of ciphertext have been read: plaintext to the inner protocol."""
        if not 0 <= size <= READ_BYTES:
            raise ValueError("more than there is room for")
        self._received(<bytes_ptr>_read_at, size)

    cdef int _received(self, bytes_ptr p, Py_ssize_t n) except -1:
        if self._closing or n == 0:
            return 0
        if self._bio_write(self._into, <void *>p, <int>n) != n:
            self._broken()
        elif self._aligned and not self._paused and n > 5 and n == 5 + (p[3] << 8 | p[4]):
            self._next()  # one whole record, the common case: spares the call that only finds that there is no more
        else:
            self._followed(PyBytes_FromStringAndSize(<char *>p, n))
            self._drained()
        return 0

    def _drain(self):
        """Deliver whole records until there are no more, or the inner protocol pauses or closes."""
        self._drained()

    cdef int _drained(self) except -1:
        while not self._paused and not self._closing:
            if not self._next():
                break
        return 0

    cdef bint _next(self) except -1:
        """Deliver what the next record holds; False when there is none."""
        cdef int n = self._ssl_read(self._ssl, _RECORD, MAX_RECORD)
        cdef bytes plain
        if n <= 0:
            self._no_more(n)
            return False
        plain = PyBytes_FromStringAndSize(<char *>_RECORD, n)
        self._deliver(plain)
        return True

    def write(self, data):
        """Encrypt and send; after ``close`` the data is dropped, as by asyncio's own transports."""
        cdef bytes whole = data if type(data) is bytes else bytes(data)
        cdef bytes out
        cdef list before = None
        cdef Py_ssize_t at = 0, size = PyBytes_GET_SIZE(whole)
        cdef int n
        if self._closing or size == 0:
            return
        while True:
            n = self._ssl_write(self._ssl, PyBytes_AS_STRING(whole) + at, <int>min(size - at, MAX_RECORD))
            if n <= 0:
                self._unwritten(n)
                return
            at += n
            out = self._sent()
            if at == size:
                break
            if before is None:
                before = []
            before.append(out)
        self._tcp_write(out if before is None else b"".join(before) + out)

    cdef bytes _sent(self):
        """Ciphertext that has been made and not sent: after one record, all of it."""
        cdef int n = self._bio_read(self._from, _RECORD, RECORD_SPACE)
        return PyBytes_FromStringAndSize(<char *>_RECORD, n if n > 0 else 0)

    def _flush(self):
        """Move ciphertext to TCP."""
        cdef bytes out = self._sent() if self._owner is not None else b""
        while out:
            self._tcp_write(out)
            out = self._sent()
