/* Makes chosen calls fail in the process that preloads it: system calls on files below a root and on sockets, the start of a
 * thread, and allocations of one library or of Python. injector.py drives it through ctypes.
 *
 * A sweep walks through one of two counters: calls or allocations. Each call that fails, and in a survey each one counted, is
 * reported as a line, followed by the Python stack, which faulthandler writes on SIGUSR2. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { DESCRIPTORS = 4096, PATH = 512 };

struct counter {
    atomic_long seen;
    long first, last; /* of those that fail; none at -1 */
};

static struct counter calls = {0, -1, -1}, allocations = {0, -1, -1};
static int failure = EIO, every, has_network, report_to = -1;
static char root[PATH], only_name[64], only_path[PATH];
static size_t root_length;
static atomic_uchar below_root[DESCRIPTORS];
static uintptr_t library_begin, library_end;
static atomic_flag reporting = ATOMIC_FLAG_INIT;

/* Driven from Python */

void faults_root(const char *path) {
    snprintf(root, sizeof root, "%s", path);
    root_length = strlen(root);
}

/* Counts only calls of this name, on paths that contain this below the root; empty for all. */
void faults_only(const char *name, const char *path) {
    snprintf(only_name, sizeof only_name, "%s", name);
    snprintf(only_path, sizeof only_path, "%s", path);
}

void faults_watch(int descriptor) { below_root[descriptor] = 1; }
void faults_network(int on) { has_network = on; }

/* Reports the calls that fail; in a survey, also every `each`-th call that is counted. */
void faults_report_to(int descriptor, int each) {
    report_to = descriptor;
    every = each;
}

void faults_fail_calls(long first, long count, int error) {
    calls.last = first + count - 1;
    failure = error;
    calls.first = first;
}

void faults_fail_allocations(long first, long count) {
    allocations.last = first + count - 1;
    allocations.first = first;
}

long faults_calls(void) { return calls.seen; }
long faults_allocations(void) { return allocations.seen; }

static int find_library(struct dl_phdr_info *info, size_t size, void *name) {
    (void)size;
    if (strstr(info->dlpi_name, name) == NULL) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            library_end = info->dlpi_addr + segment->p_vaddr + segment->p_memsz;
            library_begin = info->dlpi_addr + segment->p_vaddr;
            return 1;
        }
    }
    return 0;
}

/* Counts the allocations of this library's code. Returns whether it is loaded. */
int faults_library(const char *name) { return dl_iterate_phdr(find_library, (void *)name); }

/* Counting and failing */

static void report(const char *name, long number, const char *path) {
    char line[PATH + 64];
    int length = snprintf(line, sizeof line, "@%ld %s %s\n", number, name, path);
    if (length >= (int)sizeof line) length = sizeof line - 1;
    while (atomic_flag_test_and_set(&reporting)) sched_yield();
    struct sigaction handler; /* faulthandler's, until Python is shut down */
    sigaction(SIGUSR2, NULL, &handler);
    if (syscall(SYS_write, report_to, line, length) == length && handler.sa_handler != SIG_DFL) raise(SIGUSR2);
    atomic_flag_clear(&reporting);
}

static void path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH - 1);
    path[length < 0 ? 0 : length] = 0;
}

static int is_wanted(const char *name, const char *path, int descriptor) {
    char found[PATH];
    if (only_name[0] && strcmp(name, only_name) != 0) return 0;
    if (!only_path[0]) return 1;
    if (path == NULL) {
        path_of(descriptor, found);
        path = found;
    }
    return strncmp(path, root, root_length) == 0 && strstr(path + root_length, only_path) != NULL;
}

/* Whether this call has to fail. */
static int counted(struct counter *counter, const char *name, const char *path, int descriptor) {
    int before = errno, wanted = is_wanted(name, path, descriptor);
    errno = before;
    if (!wanted) return 0;
    long number = counter->seen++;
    int hit = counter->first >= 0 && number >= counter->first && number <= counter->last;
    if ((hit || (every && number % every == 0)) && report_to >= 0) {
        char found[PATH];
        if (path == NULL) path_of(descriptor, found);
        report(name, number, path ? path : found);
        errno = before;
    }
    return hit;
}

static int is_watched(int descriptor) { return descriptor >= 0 && descriptor < DESCRIPTORS && below_root[descriptor]; }

static int is_below(int directory, const char *path) {
    if (!root_length || path == NULL) return 0;
    return path[0] == '/' ? strncmp(path, root, root_length) == 0 : is_watched(directory);
}

static int fails_at(const char *name, int directory, const char *path) {
    return is_below(directory, path) && counted(&calls, name, path, -1);
}

static int fails_on(const char *name, int descriptor) {
    return is_watched(descriptor) && counted(&calls, name, NULL, descriptor);
}

static int fails_on_socket(const char *name, int descriptor) {
    return has_network && counted(&calls, name, NULL, descriptor);
}

/* Each replacement asks whether the call has to fail, then calls the C library's function. */
#define REAL(name)                                                    \
    static __typeof__(&name) real_;                                   \
    if (real_ == NULL) real_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define REPLACE(result, bad, name, parameters, arguments, fails) \
    result name parameters {                                     \
        REAL(name);                                              \
        if (fails) {                                             \
            errno = failure;                                     \
            return bad;                                          \
        }                                                        \
        return real_ arguments;                                  \
    }
#define BY_PATH(result, bad, name, parameters, arguments, directory, path) \
    REPLACE(result, bad, name, parameters, arguments, fails_at(#name, directory, path))
#define BY_DESCRIPTOR(result, name, parameters, arguments) REPLACE(result, -1, name, parameters, arguments, fails_on(#name, fd))
#define BY_SOCKET(result, name, parameters, arguments) \
    REPLACE(result, -1, name, parameters, arguments, fails_on_socket(#name, fd))

static int opened(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS) below_root[fd] = 1;
    return fd;
}

#define OPEN(name, directory, parameters, arguments)                 \
    int name parameters {                                            \
        REAL(name);                                                  \
        mode_t mode = 0;                                             \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {   \
            va_list rest;                                            \
            va_start(rest, flags);                                   \
            mode = va_arg(rest, mode_t);                             \
            va_end(rest);                                            \
        }                                                            \
        if (!is_below(directory, path)) return real_ arguments;      \
        if (counted(&calls, #name, path, -1)) {                      \
            errno = failure;                                         \
            return -1;                                               \
        }                                                            \
        return opened(real_ arguments);                              \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPEN(openat64, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))

/* The descriptor is closed in any case, as on Linux. */
int close(int fd) {
    REAL(close);
    int fails = fails_on("close", fd);
    if (is_watched(fd)) below_root[fd] = 0;
    int result = real_(fd);
    if (!fails) return result;
    errno = failure;
    return -1;
}

DIR *opendir(const char *path) {
    REAL(opendir);
    if (!is_below(AT_FDCWD, path)) return real_(path);
    if (counted(&calls, "opendir", path, -1)) {
        errno = failure;
        return NULL;
    }
    DIR *found = real_(path);
    if (found != NULL) opened(dirfd(found));
    return found;
}

int closedir(DIR *directory) {
    REAL(closedir);
    int fd = dirfd(directory);
    if (is_watched(fd)) below_root[fd] = 0;
    return real_(directory);
}

REPLACE(struct dirent *, NULL, readdir, (DIR * directory), (directory), fails_on("readdir", dirfd(directory)))
REPLACE(struct dirent64 *, NULL, readdir64, (DIR * directory), (directory), fails_on("readdir64", dirfd(directory)))

BY_PATH(int, -1, stat, (const char *path, struct stat *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, stat64, (const char *path, struct stat64 *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, lstat, (const char *path, struct stat *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, lstat64, (const char *path, struct stat64 *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, fstatat, (int dir, const char *path, struct stat *to, int flags), (dir, path, to, flags), dir, path)
BY_PATH(int, -1, fstatat64, (int dir, const char *path, struct stat64 *to, int flags), (dir, path, to, flags), dir, path)
BY_PATH(int, -1, statvfs, (const char *path, struct statvfs *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, statvfs64, (const char *path, struct statvfs64 *to), (path, to), AT_FDCWD, path)
BY_PATH(int, -1, access, (const char *path, int mode), (path, mode), AT_FDCWD, path)
BY_PATH(int, -1, chmod, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
BY_PATH(int, -1, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
BY_PATH(int, -1, mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode), dir, path)
BY_PATH(int, -1, rmdir, (const char *path), (path), AT_FDCWD, path)
BY_PATH(int, -1, unlink, (const char *path), (path), AT_FDCWD, path)
BY_PATH(int, -1, unlinkat, (int dir, const char *path, int flags), (dir, path, flags), dir, path)
BY_PATH(int, -1, truncate, (const char *path, off_t size), (path, size), AT_FDCWD, path)
BY_PATH(int, -1, truncate64, (const char *path, off64_t size), (path, size), AT_FDCWD, path)
BY_PATH(int, -1, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to)
BY_PATH(int, -1, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to)
BY_PATH(int, -1, link, (const char *from, const char *to), (from, to), AT_FDCWD, to)
BY_PATH(int, -1, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), b, to)
BY_PATH(int, -1, symlink, (const char *from, const char *to), (from, to), AT_FDCWD, to)
BY_PATH(ssize_t, -1, readlink, (const char *path, char *to, size_t size), (path, to, size), AT_FDCWD, path)

BY_DESCRIPTOR(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
BY_DESCRIPTOR(ssize_t, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
BY_DESCRIPTOR(ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
BY_DESCRIPTOR(ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
BY_DESCRIPTOR(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
BY_DESCRIPTOR(ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
BY_DESCRIPTOR(off_t, lseek, (int fd, off_t at, int from), (fd, at, from))
BY_DESCRIPTOR(off64_t, lseek64, (int fd, off64_t at, int from), (fd, at, from))
BY_DESCRIPTOR(int, ftruncate, (int fd, off_t size), (fd, size))
BY_DESCRIPTOR(int, ftruncate64, (int fd, off64_t size), (fd, size))
/* A file whose sync failed is not durable until it is synced again: report that, too. */
static char unsynced[PATH];

static int sync_by(int (*real)(int), const char *name, int fd) {
    if (!is_watched(fd)) return real(fd);
    if (counted(&calls, name, NULL, fd)) {
        path_of(fd, unsynced);
        errno = failure;
        return -1;
    }
    int result = real(fd);
    if (result == 0 && unsynced[0]) {
        char path[PATH];
        path_of(fd, path);
        if (strcmp(path, unsynced) == 0) report("synced", calls.seen, path);
    }
    return result;
}

int fsync(int fd) {
    REAL(fsync);
    return sync_by(real_, "fsync", fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return sync_by(real_, "fdatasync", fd);
}

BY_DESCRIPTOR(int, fstat, (int fd, struct stat *to), (fd, to))
BY_DESCRIPTOR(int, fstat64, (int fd, struct stat64 *to), (fd, to))
BY_DESCRIPTOR(int, fstatvfs, (int fd, struct statvfs *to), (fd, to))
BY_DESCRIPTOR(int, fstatvfs64, (int fd, struct statvfs64 *to), (fd, to))
BY_DESCRIPTOR(int, fchmod, (int fd, mode_t mode), (fd, mode))
BY_DESCRIPTOR(int, flock, (int fd, int operation), (fd, operation))
BY_DESCRIPTOR(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
BY_DESCRIPTOR(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))

/* These give the error as their result. */
int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate);
    return fails_on("posix_fallocate", fd) ? failure : real_(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(posix_fallocate64);
    return fails_on("posix_fallocate64", fd) ? failure : real_(fd, at, size);
}

REPLACE(void *, MAP_FAILED, mmap, (void *to, size_t size, int access, int flags, int fd, off_t at),
        (to, size, access, flags, fd, at), fails_on("mmap", fd))
REPLACE(void *, MAP_FAILED, mmap64, (void *to, size_t size, int access, int flags, int fd, off64_t at),
        (to, size, access, flags, fd, at), fails_on("mmap64", fd))

/* Only taking a lock fails: reading a descriptor's flags never does, nor does unlocking a local file. */
static int takes_lock(int command, void *argument) {
    int gets = command == F_GETLK || command == F_OFD_GETLK;
    int sets = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    return gets || (sets && ((struct flock *)argument)->l_type != F_UNLCK);
}

#define FCNTL(name)                                                                                      \
    int name(int fd, int command, ...) {                                                                 \
        REAL(name);                                                                                      \
        va_list rest;                                                                                    \
        va_start(rest, command);                                                                         \
        void *argument = va_arg(rest, void *);                                                           \
        va_end(rest);                                                                                    \
        if (takes_lock(command, argument) && fails_on("fcntl", fd)) {                                    \
            errno = failure;                                                                             \
            return -1;                                                                                   \
        }                                                                                                \
        int result = real_(fd, command, argument);                                                       \
        if (is_watched(fd) && (command == F_DUPFD || command == F_DUPFD_CLOEXEC)) opened(result);        \
        return result;                                                                                   \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

BY_SOCKET(int, socket, (int fd, int type, int protocol), (fd, type, protocol))
BY_SOCKET(int, bind, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
BY_SOCKET(int, listen, (int fd, int backlog), (fd, backlog))
BY_SOCKET(int, accept4, (int fd, struct sockaddr *to, socklen_t *size, int flags), (fd, to, size, flags))
BY_SOCKET(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size), (fd, level, name, value, size))
BY_SOCKET(int, getsockname, (int fd, struct sockaddr *to, socklen_t *size), (fd, to, size))
BY_SOCKET(int, getpeername, (int fd, struct sockaddr *to, socklen_t *size), (fd, to, size))
BY_SOCKET(ssize_t, recv, (int fd, void *to, size_t size, int flags), (fd, to, size, flags))
BY_SOCKET(ssize_t, send, (int fd, const void *from, size_t size, int flags), (fd, from, size, flags))
BY_SOCKET(int, shutdown, (int fd, int how), (fd, how))

/* The kernel's error at the limit of processes, whatever error was chosen. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*begin)(void *), void *argument) {
    REAL(pthread_create);
    if (root_length && counted(&calls, "pthread_create", "", -1)) return EAGAIN;
    return real_(thread, attributes, begin, argument);
}

/* Memory: only allocations of the chosen library. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

#define IS_OF_LIBRARY                                                           \
    (library_end != 0 && (uintptr_t)__builtin_return_address(0) < library_end && \
     (uintptr_t)__builtin_return_address(0) >= library_begin)
#define ALLOCATE(name, parameters, arguments)                                          \
    void *name parameters {                                                            \
        if (IS_OF_LIBRARY && counted(&allocations, #name, "", -1)) {                   \
            errno = ENOMEM;                                                            \
            return NULL;                                                               \
        }                                                                              \
        return __libc_##name arguments;                                                \
    }
ALLOCATE(malloc, (size_t size), (size))
ALLOCATE(calloc, (size_t count, size_t size), (count, size))
ALLOCATE(realloc, (void *old, size_t size), (old, size))

/* Python's own allocators. This is PyMemAllocatorEx of cpython/pymem.h, whose functions are found where Python has loaded them. */
struct allocator {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};
enum { OBJECTS = 2, DOMAINS = 3 };
static struct allocator before[DOMAINS];

static void *python_malloc(void *own, size_t size) {
    struct allocator *real = own;
    return counted(&allocations, "python_malloc", "", -1) ? NULL : real->malloc(real->context, size);
}

static void *python_calloc(void *own, size_t count, size_t size) {
    struct allocator *real = own;
    return counted(&allocations, "python_calloc", "", -1) ? NULL : real->calloc(real->context, count, size);
}

static void *python_realloc(void *own, void *old, size_t size) {
    struct allocator *real = own;
    return counted(&allocations, "python_realloc", "", -1) ? NULL : real->realloc(real->context, old, size);
}

static void python_free(void *own, void *old) {
    struct allocator *real = own;
    real->free(real->context, old);
}

/* Counts Python's allocations for objects and buffers. The caller holds the interpreter's lock (ctypes.PyDLL). */
int faults_python(void) {
    void (*get)(int, struct allocator *) = (void (*)(int, struct allocator *))dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    void (*set)(int, struct allocator *) = (void (*)(int, struct allocator *))dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    if (get == NULL || set == NULL) return 0;
    for (int domain = 1; domain <= OBJECTS; domain++) {
        get(domain, &before[domain]);
        struct allocator own = {&before[domain], python_malloc, python_calloc, python_realloc, python_free};
        set(domain, &own);
    }
    return 1;
}
