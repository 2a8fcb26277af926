/* What a program finds itself to be after an exec; one line each, NAME=VALUE, on standard error. */
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

static const int limits[] = {
    RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_SIGPENDING,
};

static void *nothing(void *unused)
{
    return unused;
}

static const char *refusal(int result)
{
    if (result >= 0)
        return "done";
    return errno == EPERM ? "EPERM" : errno == EAFNOSUPPORT ? "EAFNOSUPPORT" : "another error";
}

int main(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2];
    unsigned all = 0;
    pthread_t thread;

    syscall(SYS_capget, &header, held);
    for (int word = 0; word < 2; word++)
        all |= held[word].effective | held[word].permitted | held[word].inheritable;
    fprintf(stderr, "uid=%d\ngroups=%d\ncapabilities=%u\n", (int)getuid(), getgroups(0, NULL), all);
    fprintf(stderr, "no_new_privs=%d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    fprintf(stderr, "seccomp=%d\nlimits=", prctl(PR_GET_SECCOMP));
    for (unsigned which = 0; which < sizeof limits / sizeof *limits; which++) {
        struct rlimit limit;

        getrlimit(limits[which], &limit);
        fprintf(stderr, limit.rlim_cur == limit.rlim_max ? "%s%d" : "%s(unlike the hard one) %d", which ? " " : "",
                (int)limit.rlim_cur);
    }
    fprintf(stderr, "\nmount=%s\n", refusal(mount("tmpfs", "/tmp", "tmpfs", 0, NULL)));
    fprintf(stderr, "socket=%s\n", refusal(socket(AF_INET, SOCK_STREAM, 0)));
    fprintf(stderr, "thread=%s\n", pthread_create(&thread, NULL, nothing, NULL) == 0 ? "ok" : "refused");
    fprintf(stderr, "environment=%d\n", environ[0] != NULL);
    return 0;
}
