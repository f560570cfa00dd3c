/* The upstream of the benchmarks: canned answers from one thread over epoll, so that the gateway is what is measured.
 *
 *   canned PORT WHOLE STREAM BEGUN     three files: an answer, an event stream, the beginning of one that never goes on
 *
 * A request whose body asks for a stream gets STREAM, or BEGUN when it says `"endless": true`; any other gets WHOLE.
 * Requests have a Content-Length or no body; they may come in pieces, and several at once. It trusts its callers:
 * nothing is validated, and what it cannot hold ends the connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 1 << 16, MAX_EVENTS = 256, ROOM = 65536 };

struct answer {
    char *data;
    size_t size;
};
struct peer {
    const char *out; /* what is left of an answer that did not fit */
    size_t left, size;
    char data[ROOM + 1];
};
static struct answer whole, stream, begun;
static struct peer *peers[MAX_FDS]; /* by descriptor */
static int events_of;

static void die(const char *what) {
    fprintf(stderr, "canned: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct answer load(const char *path) {
    struct answer a = {0};
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die(path);
    a.size = (size_t)ftell(file);
    rewind(file);
    a.data = malloc(a.size);
    if (!a.data || fread(a.data, 1, a.size, file) != a.size) die(path);
    fclose(file);
    return a;
}

static void watch(int fd, int how, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = fd};
    if (epoll_ctl(events_of, how, fd, &e) < 0) die("epoll_ctl");
}

static void forget(int fd) {
    free(peers[fd]);
    peers[fd] = NULL;
    close(fd);
}

/* Bytes of the first request, 0 when it is not whole; *answer is what it asks for. */
static size_t request(struct peer *peer, const struct answer **answer) {
    peer->data[peer->size] = 0;
    char *end = memmem(peer->data, peer->size, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    const char *field = strcasestr(peer->data, "content-length:");
    *end = '\r';
    size_t body = field ? strtoul(field + 15, NULL, 10) : 0, head = (size_t)(end + 4 - peer->data);
    if (peer->size < head + body) return 0;
    *answer = &whole;
    if (memmem(end, body + 4, "\"stream\": true", 14))
        *answer = memmem(end, body + 4, "\"endless\": true", 15) ? &begun : &stream;
    return head + body;
}

/* Sends what there is to send; 0 when the peer does not take all of it now, -1 when it is gone. */
static int flush(int fd, struct peer *peer) {
    while (peer->left) {
        ssize_t sent = send(fd, peer->out, peer->left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        peer->out += sent;
        peer->left -= (size_t)sent;
    }
    return 1;
}

static int answer_all(int fd, struct peer *peer) {
    for (;;) {
        const struct answer *answer;
        size_t used = request(peer, &answer);
        if (!used) return peer->size < ROOM ? 1 : -1;
        peer->size -= used;
        memmove(peer->data, peer->data + used, peer->size);
        peer->out = answer->data;
        peer->left = answer->size;
        int done = flush(fd, peer);
        if (done <= 0) return done;
    }
}

static void serve(int fd, uint32_t events) {
    struct peer *peer = peers[fd];
    int waited = peer->left != 0, done = flush(fd, peer);
    if (done > 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t got = recv(fd, peer->data + peer->size, ROOM - peer->size, MSG_DONTWAIT);
        if (got > 0)
            peer->size += (size_t)got;
        else if (got == 0 || errno != EAGAIN)
            done = -1;
    }
    if (done > 0) done = answer_all(fd, peer);
    if (done < 0) {
        forget(fd);
    } else if (waited != !done) {
        watch(fd, EPOLL_CTL_MOD, done ? EPOLLIN : EPOLLOUT);
    }
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
        if (fd < 0) return;
        if (fd >= MAX_FDS || !(peers[fd] = calloc(1, sizeof(struct peer)))) die("too many connections");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: canned PORT WHOLE STREAM BEGUN\n"), 2;
    whole = load(argv[2]), stream = load(argv[3]), begun = load(argv[4]);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) die("listen");
    if ((events_of = epoll_create1(0)) < 0) die("epoll");
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int n = epoll_wait(events_of, events, MAX_EVENTS, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                welcome(listener);
            else
                serve(events[i].data.fd, events[i].events);
        }
    }
}
