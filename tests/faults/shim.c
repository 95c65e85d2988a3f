/* A fault layer to be preloaded: it numbers the file operations below a folder, writes each with its data to a journal,
 * and kills the process at one of them or makes it fail. Nothing happens until fault_arm is called, in a forked child.
 *
 * What is written is numbered 1, 2, ... ; reads (opening to read, reading) have numbers of their own and can only fail.
 * A journal record: struct head, the paths, the data. disk.py reads it. Standard C streams and writes through a shared
 * mapping are not seen here; test_fault_layer.py proves that nothing is written by them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE, SYNC, RENAME, REMOVE, FOLDER, TRUNCATE, ALLOCATE, READ, FAILURE };
enum how { RECORD, BEFORE, AFTER, HALFWAY, FAIL, FAIL_READ };

struct head {
    uint32_t kind, first, second, flags; /* flags: 1 the file was emptied */
    int64_t offset, length;              /* of the data; TRUNCATE and ALLOCATE have no data, length is the new size */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int journal = -1, how, code, armed;
static long target, seen, reads;
static int sticks; /* the fault has come, and what is like it fails from now on */

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }
#define NEXT(name) static __typeof__(name) *real; if (!real) real = next(#name)

static long system_call(long number, ...) { /* the C library's own */
    NEXT(syscall);
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long), d = va_arg(rest, long);
    long e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    return real(number, a, b, c, d, e, f);
}

void fault_arm(const char *folder, const char *journal_file, int mode, long at, int error) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    journal = journal_file[0] ? system_call(SYS_openat, AT_FDCWD, journal_file, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
    how = mode, target = at, code = error, seen = reads = sticks = 0, armed = 1;
}

/* ---- which file */

static int below(const char *path) {
    return strncmp(path, root, root_length) == 0 || strncmp(path, root, root_length - 1) == 0 && !path[root_length - 1];
}

static int of_handle(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return path[0] == '/';
}

static int named(int folder, const char *name, char *path) { /* whether it is below the root; fills in its path */
    if (!armed || !name) return 0;
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name), below(path);
    char base[PATH_MAX];
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !of_handle(folder, base)) return 0;
    return snprintf(path, PATH_MAX, "%s/%s", base, name) > 0 && below(path);
}

static int opened(int handle, char *path) { return armed && handle > 2 && of_handle(handle, path) && below(path); }

/* ---- the fault and the journal */

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int like_it(enum kind kind) { /* what fails after the first failure: a disk stays full, a folder forbidden */
    if (code == ENOSPC) return kind == OPEN || kind == WRITE || kind == FOLDER || kind == ALLOCATE;
    if (code == EACCES) return kind == OPEN || kind == RENAME || kind == REMOVE || kind == FOLDER;
    return 0; /* EIO comes once */
}

/* Take the lock; nonzero: the error to fail with. */
static int enter(enum kind kind) {
    pthread_mutex_lock(&lock);
    long number = kind == READ ? ++reads : ++seen;
    if (how == (kind == READ ? FAIL_READ : FAIL) && number == target) return sticks = 1, code;
    if (how == FAIL && sticks && kind != READ && like_it(kind)) return code;
    if (how == BEFORE && kind != READ && number == target) die();
    return 0;
}

static int halfway(void) { return how == HALFWAY && seen == target; }

static void leave(void) {
    if ((how == AFTER || how == HALFWAY) && seen == target) die();
    pthread_mutex_unlock(&lock);
}

static void note(enum kind kind, const char *first, const char *second, int flags, off_t offset, const void *data,
                 size_t length) {
    if (journal < 0) return;
    struct head head = {kind, strlen(first), second ? strlen(second) : 0, flags, offset, length};
    struct iovec parts[4] = {{&head, sizeof head},
                             {(void *)first, head.first},
                             {(void *)second, head.second},
                             {(void *)data, data ? length : 0}};
    system_call(SYS_writev, journal, parts, 4);
}

static void note_write(const char *path, off_t offset, const void *data, ssize_t done) {
    if (done < 0) note(FAILURE, path, 0, 0, 0, 0, 0);
    else note(WRITE, path, 0, 0, offset, data, done);
}

#define FAILED(kind) \
    int error = enter(kind); \
    if (error) return leave(), errno = error, -1

/* ---- opening */

static int open_any(int folder, const char *name, int flags, mode_t mode) {
    static int (*real)(int, const char *, int, ...);
    if (!real) real = next("openat64");
    char path[PATH_MAX];
    if (!named(folder, name, path)) return real(folder, name, flags, mode);
    struct stat known;
    int there = fstatat(folder, name, &known, 0) == 0, writes = (flags & O_ACCMODE) != O_RDONLY;
    int changes = (!there && flags & O_CREAT) || (there && writes && flags & O_TRUNC);
    FAILED(changes ? OPEN : READ);
    int handle = real(folder, name, flags, mode);
    note(!changes ? READ : handle < 0 ? FAILURE : OPEN, path, 0, there, 0, 0, 0);
    int kept = errno;
    return leave(), errno = kept, handle;
}

#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }
int open(const char *name, int flags, ...) { MODE return open_any(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return open_any(AT_FDCWD, name, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE return open_any(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE return open_any(folder, name, flags | O_LARGEFILE, mode); }
int creat(const char *name, mode_t mode) { return open_any(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

/* ---- writing */

ssize_t write(int handle, const void *data, size_t length) {
    NEXT(write);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, data, length);
    FAILED(WRITE);
    ssize_t done = real(handle, data, halfway() ? length / 2 : length);
    note_write(path, lseek(handle, 0, SEEK_CUR) - done, data, done);
    int kept = errno;
    return leave(), errno = kept, done;
}

ssize_t pwrite64(int handle, const void *data, size_t length, off_t offset) {
    NEXT(pwrite64);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, data, length, offset);
    FAILED(WRITE);
    ssize_t done = real(handle, data, halfway() ? length / 2 : length, offset);
    note_write(path, offset, data, done);
    int kept = errno;
    return leave(), errno = kept, done;
}
ssize_t pwrite(int handle, const void *data, size_t length, off_t offset) {
    return pwrite64(handle, data, length, offset);
}

/* A gathered write may be short: its first part is all that is written, and callers go on from there. */
ssize_t writev(int handle, const struct iovec *parts, int count) {
    NEXT(writev);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, parts, count);
    while (count > 1 && !parts->iov_len) parts++, count--;
    return write(handle, parts->iov_base, parts->iov_len);
}
ssize_t pwritev64(int handle, const struct iovec *parts, int count, off_t offset) {
    NEXT(pwritev64);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, parts, count, offset);
    while (count > 1 && !parts->iov_len) parts++, count--;
    return pwrite64(handle, parts->iov_base, parts->iov_len, offset);
}
ssize_t pwritev(int handle, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(handle, parts, count, offset);
}

/* Copies within the kernel are refused, as between two file systems: callers then read and write. */
ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t length, unsigned flags) {
    NEXT(copy_file_range);
    char path[PATH_MAX];
    if (opened(to, path)) return errno = EXDEV, -1;
    return real(from, in, to, out, length, flags);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t length) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = next("sendfile64");
    char path[PATH_MAX];
    if (opened(to, path)) return errno = ENOTSOCK, -1;
    return real(to, from, offset, length);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t length) { return sendfile64(to, from, offset, length); }

#define SYNCING(name) \
    int name(int handle) { \
        NEXT(name); \
        char path[PATH_MAX]; \
        if (!opened(handle, path)) return real(handle); \
        FAILED(SYNC); \
        int done = real(handle); \
        note(done ? FAILURE : SYNC, path, 0, 0, 0, 0, 0); \
        int kept = errno; \
        return leave(), errno = kept, done; \
    }
SYNCING(fsync)
SYNCING(fdatasync)

/* ---- sizes */

int ftruncate64(int handle, off_t size) {
    NEXT(ftruncate64);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, size);
    FAILED(TRUNCATE);
    int done = real(handle, size);
    note(done ? FAILURE : TRUNCATE, path, 0, 0, 0, 0, size);
    int kept = errno;
    return leave(), errno = kept, done;
}
int ftruncate(int handle, off_t size) { return ftruncate64(handle, size); }

int truncate64(const char *name, off_t size) {
    NEXT(truncate64);
    char path[PATH_MAX];
    if (!named(AT_FDCWD, name, path)) return real(name, size);
    FAILED(TRUNCATE);
    int done = real(name, size);
    note(done ? FAILURE : TRUNCATE, path, 0, 0, 0, 0, size);
    int kept = errno;
    return leave(), errno = kept, done;
}
int truncate(const char *name, off_t size) { return truncate64(name, size); }

int posix_fallocate64(int handle, off_t offset, off_t length) { /* returns its error */
    NEXT(posix_fallocate64);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, offset, length);
    int error = enter(ALLOCATE);
    if (!error) note((error = real(handle, offset, length)) ? FAILURE : ALLOCATE, path, 0, 0, 0, 0, offset + length);
    return leave(), error;
}
int posix_fallocate(int handle, off_t offset, off_t length) { return posix_fallocate64(handle, offset, length); }

int fallocate64(int handle, int mode, off_t offset, off_t length) {
    NEXT(fallocate64);
    char path[PATH_MAX];
    if (!opened(handle, path)) return real(handle, mode, offset, length);
    return errno = EOPNOTSUPP, -1; /* holes and the like: callers do without */
}
int fallocate(int handle, int mode, off_t offset, off_t length) { return fallocate64(handle, mode, offset, length); }

/* ---- names */

static int rename_any(int a, const char *from, int b, const char *to, unsigned flags) {
    static int (*real)(int, const char *, int, const char *, unsigned);
    if (!real) real = next("renameat2");
    char first[PATH_MAX], second[PATH_MAX];
    if (!named(a, from, first) | !named(b, to, second)) return real(a, from, b, to, flags);
    FAILED(RENAME);
    int done = real(a, from, b, to, flags);
    note(done ? FAILURE : RENAME, first, second, 0, 0, 0, 0);
    int kept = errno;
    return leave(), errno = kept, done;
}
int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_any(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return rename_any(a, from, b, to, flags); }

/* Rust's standard library renames by number. */
long syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long), d = va_arg(rest, long);
    long e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_renameat2) return rename_any(a, (const char *)b, c, (const char *)d, e);
    return system_call(number, a, b, c, d, e, f);
}

int unlinkat(int folder, const char *name, int flags) {
    NEXT(unlinkat);
    char path[PATH_MAX];
    struct stat known;
    if (!named(folder, name, path) || fstatat(folder, name, &known, AT_SYMLINK_NOFOLLOW)) return real(folder, name, flags);
    FAILED(REMOVE);
    int done = real(folder, name, flags);
    note(done ? FAILURE : REMOVE, path, 0, 0, 0, 0, 0);
    int kept = errno;
    return leave(), errno = kept, done;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    NEXT(mkdirat);
    char path[PATH_MAX];
    struct stat known;
    if (!named(folder, name, path) || !fstatat(folder, name, &known, 0)) return real(folder, name, mode);
    FAILED(FOLDER);
    int done = real(folder, name, mode);
    note(done ? FAILURE : FOLDER, path, 0, 0, 0, 0, 0);
    int kept = errno;
    return leave(), errno = kept, done;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* ---- reading */

#define READING(signature, call, name) \
    signature { \
        NEXT(name); \
        char path[PATH_MAX]; \
        if (!opened(handle, path)) return real call; \
        FAILED(READ); \
        ssize_t done = real call; \
        note(READ, path, 0, 0, 0, 0, 0); \
        int kept = errno; \
        return leave(), errno = kept, done; \
    }
READING(ssize_t read(int handle, void *data, size_t length), (handle, data, length), read)
READING(ssize_t pread64(int handle, void *data, size_t length, off_t at), (handle, data, length, at), pread64)
READING(ssize_t preadv64(int handle, const struct iovec *parts, int count, off_t at), (handle, parts, count, at), preadv64)
READING(ssize_t preadv(int handle, const struct iovec *parts, int count, off_t at), (handle, parts, count, at), preadv)
