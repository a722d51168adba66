// Stands between a process and its disk (LD_PRELOAD): records what is written and which barriers are issued, and can let a
// write or a barrier fail. What is recorded is enough to rebuild what a loss of power at any moment could have left.
//
//   DISK_ROOT        only files below this directory are looked at
//   DISK_TRACE       the file that records are appended to; without it nothing is recorded
//   DISK_FAIL_WRITE  the number of the write that fails, counted from 1; every later one fails too
//   DISK_FAIL_SYNC   the same for barriers
//   DISK_FAIL_TIMES  how many of them fail, all if not given
//   DISK_FAIL_DELAY  how many milliseconds a failing one takes
//   DISK_ERRNO       the error they fail with, EIO if not given
//   DISK_HOLD        while there is a file of this name, no barrier is issued: whoever asks for one waits
//   DISK_KILL_AT     the number of the step (write, barrier, change of a name) before which the process kills itself
//   DISK_KILL_FROM   steps are counted from when a file is made, or gets a name, that fits this pattern
//
// A record: op (u8), fd (i32), a (u64), b (u64), length (u32), bytes; little endian. See tests/src/disk.rs for the meaning.
// A write is recorded after it happened and a barrier names how far the trace was when it began, so a write counts as
// covered only if it had surely ended before. What happens and its record are one for DISK_KILL_AT: it waits for steps
// under way. A kill from outside may fall between the two and leaves a recording that is not to be trusted.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN = 1, CLOSE, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, RMDIR, ACK };
enum { UNTRACKED = 0, FILE_FD, DIRECTORY_FD, ACK_FD };

#define MAX_FD 4096
static unsigned char kinds[MAX_FD];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
// Held for reading by every step with its record, for writing by the kill.
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
static const char *root, *hold, *kill_from;
static size_t root_length;
static int trace = -1;
static long fail_write, fail_sync, fail_times = LONG_MAX, fail_delay, kill_at, writes, syncs, all_steps;
static int fail_errno = EIO, counting = 1;

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    const char *value;
    root = getenv("DISK_ROOT");
    root_length = root ? strlen(root) : 0;
    hold = getenv("DISK_HOLD");
    if ((kill_from = getenv("DISK_KILL_FROM"))) counting = 0;
    if ((value = getenv("DISK_FAIL_WRITE"))) fail_write = atol(value);
    if ((value = getenv("DISK_FAIL_SYNC"))) fail_sync = atol(value);
    if ((value = getenv("DISK_FAIL_TIMES"))) fail_times = atol(value);
    if ((value = getenv("DISK_FAIL_DELAY"))) fail_delay = atol(value);
    if ((value = getenv("DISK_KILL_AT"))) kill_at = atol(value);
    if ((value = getenv("DISK_ERRNO"))) fail_errno = atoi(value);
    if ((value = getenv("DISK_TRACE"))) {
        int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
        trace = real(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

static int below_root(const char *path) {
    return root && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

// The absolute path of something named relative to a directory descriptor.
static int resolve(int dirfd, const char *path, char *out) {
    char link[64];
    ssize_t n;
    if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    if (dirfd == AT_FDCWD) {
        if (!getcwd(out, PATH_MAX)) return 0;
        n = (ssize_t)strlen(out);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        n = readlink(link, out, PATH_MAX - 1);
        if (n < 0) return 0;
    }
    return snprintf(out + n, (size_t)(PATH_MAX - n), "/%s", path) < PATH_MAX - n;
}

static void put(unsigned char op, int fd, uint64_t a, uint64_t b, const void *bytes, uint32_t length) {
    REAL(write);
    unsigned char head[25];
    int32_t descriptor = fd;
    if (trace < 0) return;
    head[0] = op;
    memcpy(head + 1, &descriptor, 4);
    memcpy(head + 5, &a, 8);
    memcpy(head + 13, &b, 8);
    memcpy(head + 21, &length, 4);
    if (real(trace, head, sizeof head) != (ssize_t)sizeof head) abort();
    for (const char *rest = bytes; length > 0;) {
        ssize_t n = real(trace, rest, length);
        if (n <= 0) abort();
        rest += n;
        length -= (uint32_t)n;
    }
}

static void record(unsigned char op, int fd, uint64_t a, uint64_t b, const void *bytes, size_t length) {
    int saved = errno;
    pthread_mutex_lock(&lock);
    put(op, fd, a, b, bytes, (uint32_t)length);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void record_two(unsigned char op, const char *from, const char *to) {
    char both[2 * PATH_MAX];
    size_t first = strlen(from) + 1, second = strlen(to);
    memcpy(both, from, first);
    memcpy(both + first, to, second);
    record(op, -1, 0, 0, both, first + second);
}

static int kind(int fd) { return fd >= 0 && fd < MAX_FD ? kinds[fd] : UNTRACKED; }

// There is a file of this name from now on.
static void named(const char *path) {
    if (kill_from && fnmatch(kill_from, path, 0) == 0) __atomic_store_n(&counting, 1, __ATOMIC_SEQ_CST);
}

// Every step that changes the disk passes here first.
static void step(void) {
    if (!__atomic_load_n(&counting, __ATOMIC_SEQ_CST)) return;
    long number = __atomic_add_fetch(&all_steps, 1, __ATOMIC_SEQ_CST);
    if (kill_at > 0 && number >= kill_at) {
        pthread_rwlock_wrlock(&gate);
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static int fails(long *counter, long limit) {
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    if (limit > 0 && number >= limit && number - limit < fail_times) {
        if (fail_delay > 0) usleep((useconds_t)fail_delay * 1000);
        errno = fail_errno;
        return 1;
    }
    return 0;
}

static void opened(int fd, int flags, int dirfd, const char *path) {
    char full[PATH_MAX];
    struct stat info;
    size_t length;
    if (fd < 0 || fd >= MAX_FD || !resolve(dirfd, path, full) || !below_root(full)) return;
    length = strlen(full);
    if (length > 5 && strcmp(full + length - 5, ".acks") == 0) {
        kinds[fd] = ACK_FD;
        return;
    }
    if (fstat(fd, &info) != 0) return;
    kinds[fd] = S_ISDIR(info.st_mode) ? DIRECTORY_FD : FILE_FD;
    if (flags & O_CREAT) named(full);
    record(OPEN, fd, (uint64_t)flags, kinds[fd] == DIRECTORY_FD, full, length);
}

// Errors of the lock's own calls must not show.
#define ENTER pthread_rwlock_rdlock(&gate)
#define LEAVE                          \
    do {                               \
        int saved_errno = errno;       \
        pthread_rwlock_unlock(&gate);  \
        errno = saved_errno;           \
    } while (0)

#define MODE(flags, last)                     \
    mode_t mode = 0;                          \
    if ((flags) & (O_CREAT | O_TMPFILE)) {    \
        va_list rest;                         \
        va_start(rest, last);                 \
        mode = va_arg(rest, mode_t);          \
        va_end(rest);                         \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags, flags)
    ENTER;
    int fd = real(path, flags, mode);
    opened(fd, flags, AT_FDCWD, path);
    LEAVE;
    return fd;
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags, flags)
    ENTER;
    int fd = real(path, flags, mode);
    opened(fd, flags, AT_FDCWD, path);
    LEAVE;
    return fd;
}

int openat(int dirfd, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags, flags)
    ENTER;
    int fd = real(dirfd, path, flags, mode);
    opened(fd, flags, dirfd, path);
    LEAVE;
    return fd;
}

int openat64(int dirfd, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags, flags)
    ENTER;
    int fd = real(dirfd, path, flags, mode);
    opened(fd, flags, dirfd, path);
    LEAVE;
    return fd;
}

int close(int fd) {
    REAL(close);
    int tracked = kind(fd), outcome;
    if (tracked == UNTRACKED) return real(fd);
    ENTER;
    kinds[fd] = UNTRACKED;
    // Recorded before the call: the number may be given out again at once.
    if (tracked != ACK_FD) record(CLOSE, fd, 0, 0, "", 0);
    outcome = real(fd);
    LEAVE;
    return outcome;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    int tracked = kind(fd);
    ssize_t n;
    if (tracked != ACK_FD && tracked != FILE_FD) return real(fd, bytes, length);
    if (tracked == FILE_FD) step();
    ENTER;
    if (tracked == ACK_FD) {
        record(ACK, fd, 0, 0, bytes, length);
        n = real(fd, bytes, length);
    } else if (fails(&writes, fail_write)) {
        n = -1;
    } else {
        n = real(fd, bytes, length);
        if (n > 0) record(WRITE, fd, (uint64_t)(lseek(fd, 0, SEEK_CUR) - n), 0, bytes, (size_t)n);
    }
    LEAVE;
    return n;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    REAL(pwrite64);
    ssize_t n = -1;
    if (kind(fd) != FILE_FD) return real(fd, bytes, length, offset);
    step();
    ENTER;
    if (!fails(&writes, fail_write)) {
        n = real(fd, bytes, length, offset);
        if (n > 0) record(WRITE, fd, (uint64_t)offset, 0, bytes, (size_t)n);
    }
    LEAVE;
    return n;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    int outcome = -1;
    if (kind(fd) != FILE_FD) return real(fd, length);
    step();
    ENTER;
    if (!fails(&writes, fail_write)) {
        outcome = real(fd, length);
        if (outcome == 0) record(TRUNCATE, fd, (uint64_t)length, 0, "", 0);
    }
    LEAVE;
    return outcome;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int barrier(int fd, int (*real)(int)) {
    off64_t began;
    int outcome = -1;
    if (kind(fd) != FILE_FD && kind(fd) != DIRECTORY_FD) return real(fd);
    step();
    while (hold && access(hold, F_OK) == 0) usleep(1000);
    ENTER;
    if (!fails(&syncs, fail_sync)) {
        pthread_mutex_lock(&lock);
        began = trace < 0 ? 0 : lseek64(trace, 0, SEEK_END);
        pthread_mutex_unlock(&lock);
        outcome = real(fd);
        if (outcome == 0) record(SYNC, fd, (uint64_t)began, 0, "", 0);
    }
    LEAVE;
    return outcome;
}

int fsync(int fd) {
    REAL(fsync);
    return barrier(fd, real);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return barrier(fd, real);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    char full_from[PATH_MAX], full_to[PATH_MAX];
    int outcome;
    if (!resolve(AT_FDCWD, from, full_from) || !resolve(AT_FDCWD, to, full_to) || !below_root(full_from))
        return real(from, to);
    step();
    ENTER;
    outcome = real(from, to);
    if (outcome == 0) {
        record_two(RENAME, full_from, full_to);
        named(full_to);
    }
    LEAVE;
    return outcome;
}

// The rest changes a name, too: NAMED makes the call a step with a record.
#define NAMED(op, dirfd, path, call)                                                        \
    char full[PATH_MAX];                                                                    \
    int outcome;                                                                            \
    if (!resolve(dirfd, path, full) || !below_root(full)) return call;                      \
    step();                                                                                 \
    ENTER;                                                                                  \
    outcome = call;                                                                         \
    if (outcome == 0) record(op, -1, 0, 0, full, strlen(full));                             \
    LEAVE;                                                                                  \
    return outcome

int unlink(const char *path) {
    REAL(unlink);
    NAMED(UNLINK, AT_FDCWD, path, real(path));
}

int unlinkat(int dirfd, const char *path, int flags) {
    REAL(unlinkat);
    NAMED(flags & AT_REMOVEDIR ? RMDIR : UNLINK, dirfd, path, real(dirfd, path, flags));
}

int rmdir(const char *path) {
    REAL(rmdir);
    NAMED(RMDIR, AT_FDCWD, path, real(path));
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    NAMED(MKDIR, AT_FDCWD, path, real(path, mode));
}
