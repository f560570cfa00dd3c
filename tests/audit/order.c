/* Preloaded into a proxy: puts on record, in one order, what goes to files, to sockets and to the disk.
 *
 * A record: kind (1 byte), inode (8), length (4), then that many bytes. Kinds: W bytes that a file took, T a file was cut
 * to a length, B a sync of a file or folder begins, E it has worked, N a file got a name (its inode), S bytes about to be
 * handed to a socket. So S is early and E is late: what looks right here was right.
 * CUBE_ORDER_LOG: where. CUBE_ORDER_SYNC_MS: each sync takes that long. CUBE_ORDER_FULL: while this file exists, the disk
 * is full.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int out = -1;
static const char *full;
static long sync_ms;
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CUBE_ORDER_LOG"), *ms = getenv("CUBE_ORDER_SYNC_MS");
    full = getenv("CUBE_ORDER_FULL");
    sync_ms = ms ? atol(ms) : 0;
    if (path) out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void all(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        long n = syscall(SYS_write, out, at, size);
        if (n < 0) abort();
        at += n, size -= (size_t)n;
    }
}

static void note(char kind, uint64_t inode, const struct iovec *parts, int count, size_t size) {
    uint32_t length = (uint32_t)size;
    char head[13];
    if (out < 0) return;
    head[0] = kind;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &length, 4);
    pthread_mutex_lock(&one);
    all(head, sizeof head);
    for (int i = 0; i < count && size; i++) {
        size_t n = parts[i].iov_len < size ? parts[i].iov_len : size;
        all(parts[i].iov_base, n);
        size -= n;
    }
    pthread_mutex_unlock(&one);
}

static mode_t kind_of(int fd, uint64_t *inode) {
    struct stat info;
    if (out < 0 || fstat(fd, &info)) return 0;
    *inode = info.st_ino;
    return info.st_mode & S_IFMT;
}

static size_t total(const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    return size;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t gathered(int fd, const struct iovec *parts, int count, ssize_t (*real)(int, const struct iovec *, int)) {
    uint64_t inode;
    mode_t kind = kind_of(fd, &inode);
    if (kind == S_IFSOCK) note('S', inode, parts, count, total(parts, count));
    if (kind == S_IFREG && fd > 2 && full && !access(full, F_OK)) return errno = ENOSPC, -1;
    ssize_t taken = real(fd, parts, count);
    if (kind == S_IFREG && taken > 0) note('W', inode, parts, count, (size_t)taken);
    return taken;
}

ssize_t writev(int fd, const struct iovec *parts, int count) { REAL(writev); return gathered(fd, parts, count, real); }

static ssize_t plain(int fd, const struct iovec *part, int count) {
    (void)count;
    REAL(write);
    return real(fd, part->iov_base, part->iov_len);
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return gathered(fd, &part, 1, plain);
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(send);
    uint64_t inode;
    struct iovec part = {(void *)data, size};
    if (kind_of(fd, &inode) == S_IFSOCK) note('S', inode, &part, 1, size);
    return real(fd, data, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(sendmsg);
    uint64_t inode;
    if (kind_of(fd, &inode) == S_IFSOCK)
        note('S', inode, message->msg_iov, (int)message->msg_iovlen, total(message->msg_iov, (int)message->msg_iovlen));
    return real(fd, message, flags);
}

static int synced(int fd, int (*real)(int)) {
    uint64_t inode = 0;
    kind_of(fd, &inode);
    note('B', inode, NULL, 0, 0);
    if (sync_ms) usleep((useconds_t)(sync_ms * 1000));
    int result = real(fd);
    if (!result) note('E', inode, NULL, 0, 0);
    return result;
}

int fsync(int fd) { REAL(fsync); return synced(fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return synced(fd, real); }

static int cut(int fd, off_t size, int result) {
    uint64_t inode, length = (uint64_t)size;
    struct iovec part = {&length, sizeof length};
    if (!result && kind_of(fd, &inode) == S_IFREG) note('T', inode, &part, 1, sizeof length);
    return result;
}

int ftruncate(int fd, off_t size) { REAL(ftruncate); return cut(fd, size, real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return cut(fd, (off_t)size, real(fd, size)); }

int rename(const char *from, const char *to) {
    REAL(rename);
    struct stat info;
    int result = real(from, to);
    if (!result && !stat(to, &info)) note('N', info.st_ino, NULL, 0, 0);
    return result;
}
