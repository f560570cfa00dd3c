/* Paced event streams and their reader: both ends of `python -m bench.load --paced`, each one thread over epoll.
 *
 *   paced serve PORT RATE                          answers every request with an endless stream of RATE events a second
 *   paced read PORT REQUEST_FILE STREAMS SECONDS   opens STREAMS of them with the bytes of REQUEST_FILE
 *
 * Every event carries the server's CLOCK_MONOTONIC in nanoseconds, 19 digits, which all processes of a machine share.
 * The streams' phases are spread evenly over the interval. The reader prints "start" when every stream has brought an
 * event and a second has passed, and after SECONDS one line of JSON. It trusts its peers: nothing is validated but the
 * status; what is odd ends the program with a message.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 8192, MAX_EVENTS = 256, BUFFER = 65536, STAMP = 19 };
static const char MARK[] = "\"content\":\" ";
static const double GOLDEN = 0.6180339887498949;

static void die(const char *what) {
    fprintf(stderr, "paced: %s: %s\n", what, errno ? strerror(errno) : "not as expected");
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void watch(int poll, int fd) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e) < 0) die("epoll_ctl");
}

/* -- the server ---------------------------------------------------------------------------------------------------- */

struct peer {
    int64_t due; /* of the next event; 0 = its request is not whole yet */
    size_t size;
    char head[8192];
};
static struct peer *peers[1 << 16]; /* by descriptor */
static int heap[MAX_STREAMS], heaped;

static int64_t due(int at) { return peers[heap[at]]->due; }

static void swap(int a, int b) {
    int t = heap[a];
    heap[a] = heap[b];
    heap[b] = t;
}

static void sink(int at) {
    for (;;) {
        int least = at, left = 2 * at + 1, right = left + 1;
        if (left < heaped && due(left) < due(least)) least = left;
        if (right < heaped && due(right) < due(least)) least = right;
        if (least == at) return;
        swap(at, least);
        at = least;
    }
}

static void push(int fd) {
    int at = heaped++;
    if (heaped > MAX_STREAMS) die("too many streams");
    heap[at] = fd;
    for (; at && due(at) < due((at - 1) / 2); at = (at - 1) / 2) swap(at, (at - 1) / 2);
}

static void forget(int fd) {
    for (int at = 0; at < heaped; at++)
        if (heap[at] == fd) {
            heap[at] = heap[--heaped];
            for (int from = heaped / 2; from >= 0; from--) sink(from); /* rare: when a client leaves */
            break;
        }
    free(peers[fd]);
    peers[fd] = NULL;
    close(fd);
}

static int whole_request(struct peer *peer) {
    char *end = memmem(peer->head, peer->size, "\r\n\r\n", 4);
    if (!end) return 0;
    peer->head[peer->size] = 0;
    char *length = strcasestr(peer->head, "content-length:");
    size_t body = length && length < end ? strtoul(length + 15, NULL, 10) : 0;
    return peer->size >= (size_t)(end + 4 - peer->head) + body;
}

static void hear(int fd, int64_t interval, double *phase) {
    struct peer *peer = peers[fd];
    ssize_t got = read(fd, peer->head + peer->size, sizeof peer->head - 1 - peer->size);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        forget(fd);
        return;
    }
    peer->size += (size_t)got;
    if (peer->due || !whole_request(peer)) return;
    static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                               "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n";
    if (write(fd, HEAD, sizeof HEAD - 1) != sizeof HEAD - 1) {
        forget(fd);
        return;
    }
    *phase += GOLDEN;
    *phase -= (int)*phase;
    peer->due = now_ns() + (int64_t)((double)interval * *phase) + 1;
    push(fd);
}

static void speak(int64_t interval) {
    static char frame[512];
    int fd = heap[0];
    char event[400];
    int size = snprintf(event, sizeof event,
                        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":"
                        "1700000000,\"model\":\"canned-model\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" "
                        "%019lld\"},\"finish_reason\":null}]}\n\n",
                        (long long)now_ns());
    int total = snprintf(frame, sizeof frame, "%x\r\n%s\r\n", (unsigned)size, event);
    if (write(fd, frame, (size_t)total) != total) {
        forget(fd); /* a reader that does not keep up, or is gone: the reader counts its streams */
        return;
    }
    peers[fd]->due += interval;
    sink(0);
}

static void take(int poll, int door) {
    int fd, on = 1;
    while ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (!(peers[fd] = calloc(1, sizeof(struct peer)))) die("memory");
        watch(poll, fd);
    }
}

static void serve(const char *port, double rate) {
    struct sockaddr_in address = loopback(port);
    int64_t interval = (int64_t)(1e9 / rate);
    int on = 1, door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    int clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    double phase = 0;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)&address, sizeof address) < 0 || listen(door, 4096) < 0) die("listen");
    watch(poll, door);
    watch(poll, clock);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int64_t next = heaped ? due(0) : 0;
        struct itimerspec at = {.it_value = {next / 1000000000, next % 1000000000}};
        timerfd_settime(clock, TFD_TIMER_ABSTIME, &at, NULL);
        int ready = epoll_wait(poll, events, MAX_EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            uint64_t ticks;
            if (fd == door) take(poll, door);
            else if (fd == clock) (void)!read(clock, &ticks, sizeof ticks);
            else if (peers[fd]) hear(fd, interval, &phase);
        }
        while (heaped && due(0) <= now_ns()) speak(interval);
    }
}

/* -- the reader ---------------------------------------------------------------------------------------------------- */

struct stream {
    int fd, seen, kept;
    char keep[sizeof MARK + STAMP]; /* the end of the last read: a stamp may be cut */
};
static struct stream streams[MAX_STREAMS];
static int alive, fresh, merged, counting;
static int64_t *delays;
static size_t delayed, most;

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static size_t stamps(char *text, size_t size, int64_t now, char **rest) {
    size_t found = 0, mark = sizeof MARK - 1;
    char *at = text, *end = text + size, *hit;
    while ((hit = memmem(at, (size_t)(end - at), MARK, mark)) && hit + mark + STAMP <= end) {
        at = hit + mark + STAMP;
        found++;
        if (counting && delayed < most) delays[delayed++] = now - strtoll(hit + mark, NULL, 10);
    }
    *rest = hit ? hit : end - at > (ptrdiff_t)mark ? end - mark : at;
    return found;
}

static void receive(struct stream *stream) {
    static char text[BUFFER];
    char *rest;
    memcpy(text, stream->keep, (size_t)stream->kept);
    ssize_t got = read(stream->fd, text + stream->kept, sizeof text - 1 - sizeof stream->keep);
    int64_t now = now_ns();
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close(stream->fd);
        alive--;
        return;
    }
    size_t size = (size_t)(stream->kept + got);
    text[size] = 0;
    if (!stream->seen && !stream->kept && strncmp(text, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "paced: answered: %.200s\n", text);
        exit(1);
    }
    size_t found = stamps(text, size, now, &rest);
    merged += counting && found > 1;
    fresh += found && !stream->seen;
    stream->seen |= found > 0;
    stream->kept = (int)(text + size - rest);
    memcpy(stream->keep, rest, (size_t)stream->kept);
}

static void turn(int poll, int64_t until) {
    struct epoll_event events[MAX_EVENTS];
    int64_t left = until - now_ns();
    int ready = epoll_wait(poll, events, MAX_EVENTS, left > 0 ? (int)(left / 1000000 + 1) : 0);
    for (int i = 0; i < ready; i++) receive(&streams[events[i].data.u32]);
}

static void begin(int poll, int number, struct sockaddr_in *address, const char *request, size_t size) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)address, sizeof *address) < 0) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (write(fd, request, size) != (ssize_t)size) die("request");
    streams[number].fd = fd;
    alive++;
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)number};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e) < 0) die("epoll_ctl");
}

static void follow(const char *port, const char *file, int wanted, double seconds) {
    static char request[BUFFER];
    struct sockaddr_in address = loopback(port);
    FILE *in = fopen(file, "rb");
    size_t size = in ? fread(request, 1, sizeof request, in) : 0;
    int poll = epoll_create1(0);
    if (!size || wanted < 1 || wanted > MAX_STREAMS) die("a request file, and 1 to 8192 streams");
    most = (size_t)(wanted * (seconds + 1) * 1000);
    if (!(delays = malloc(most * sizeof *delays))) die("memory");
    for (int number = 0; number < wanted; number++) {
        begin(poll, number, &address, request, size);
        turn(poll, now_ns() + 500000); /* a millisecond each: nobody's accept queue overflows */
    }
    int64_t limit = now_ns() + 20000000000LL, from = 0;
    while (fresh < wanted && now_ns() < limit) turn(poll, now_ns() + 100000000);
    if (fresh < wanted) {
        fprintf(stderr, "paced: %d of %d streams began\n", fresh, wanted);
        exit(1);
    }
    for (int64_t until = now_ns() + 1000000000; now_ns() < until;) turn(poll, until);
    printf("start\n");
    fflush(stdout);
    counting = 1;
    from = now_ns();
    double before = cpu_s();
    int64_t until = from + (int64_t)(seconds * 1e9);
    while (now_ns() < until) turn(poll, until);
    double elapsed = (double)(now_ns() - from) / 1e9, used = cpu_s() - before;
    size_t frames = delayed;
    counting = 0;
    printf("stop\n"); /* the harness reads the gateway's CPU now, before the sorting */
    fflush(stdout);
    qsort(delays, frames, sizeof *delays, by_size);
    printf("{\"frames\": %zu, \"seconds\": %.4f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"merged\": %d, \"lost\": %d, "
           "\"reader_cpu\": %.3f}\n",
           frames, elapsed, frames ? (double)delays[frames / 2] / 1e3 : 0,
           frames ? (double)delays[frames * 99 / 100] / 1e3 : 0, merged, wanted - alive, used / elapsed);
}

int main(int argc, char **argv) {
    struct rlimit files = {0, 0};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < 1 << 16 ? files.rlim_max : (1 << 16) - 1;
    setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 4 && !strcmp(argv[1], "serve")) serve(argv[2], atof(argv[3]));
    else if (argc == 6 && !strcmp(argv[1], "read")) follow(argv[2], argv[3], atoi(argv[4]), atof(argv[5]));
    else fprintf(stderr, "usage: paced serve PORT RATE | paced read PORT REQUEST_FILE STREAMS SECONDS\n");
    return argc == 6 ? 0 : 2;
}
