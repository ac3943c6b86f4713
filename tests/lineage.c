/* Processes for the tests of lineage, which write down what they know of themselves.
 *
 *   lineage churn COUNT FILE           COUNT times: fork a process that forks another and ends; that one is an orphan,
 *                                      leads a session, writes "PID PREVIOUS-PARENT" and executes "leaf", which ends
 *   lineage rounds COUNT FILE          the same once for each byte of stdin, as a subreaper; "." on stdout when done
 *   lineage names COUNT                calls itself something else so often: a message each, and no process
 *   lineage threads FILE               the first thread ends; another one, told by a byte of stdin, forks an orphan
 *                                      as above and ends the process with code 3
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int file;

static void orphan(int previous)
{
    char text[64];
    while (getppid() == previous) /* it is about to end */
        sched_yield();
    int n = snprintf(text, sizeof text, "%d %d\n", getpid(), previous);
    if (setsid() < 0 || write(file, text, (size_t)n) != n)
        _exit(9);
    execl("/proc/self/exe", "lineage", "leaf", (char *)NULL);
    _exit(9);
}

static void fork_twice(void)
{
    int pid = fork();
    if (pid == 0) {
        int me = getpid();
        int child = fork();
        if (child == 0)
            orphan(me);
        _exit(child < 0 ? 9 : 7);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 7 << 8)
        exit(9);
}

/* All have ended, or are about to, when nobody has this pipe any more. */
static void churn(int count)
{
    int ends[2];
    char byte;
    if (pipe(ends) < 0)
        exit(9);
    for (int i = 0; i < count; i++)
        fork_twice();
    close(ends[1]);
    if (read(ends[0], &byte, 1) != 0)
        exit(9);
    close(ends[0]);
}

static void *last_thread(void *unused)
{
    char byte;
    int me = getpid();
    (void)unused;
    if (read(0, &byte, 1) != 1)
        _exit(9);
    if (fork() == 0)
        orphan(me);
    _exit(3);
}

int main(int argc, char **argv)
{
    char byte;
    if (argc == 2 && strcmp(argv[1], "leaf") == 0)
        return 0;
    if (argc < 3)
        return 2;
    if (strcmp(argv[1], "names") == 0) {
        for (int i = atoi(argv[2]); i > 0; i--)
            prctl(PR_SET_NAME, i % 2 ? "odd" : "even");
        return 0;
    }
    file = open(argv[argc - 1], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (strcmp(argv[1], "churn") == 0) {
        churn(atoi(argv[2]));
    } else if (strcmp(argv[1], "rounds") == 0) {
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        while (read(0, &byte, 1) == 1) {
            churn(atoi(argv[2]));
            while (waitpid(-1, NULL, 0) > 0)
                ;
            if (write(1, ".", 1) != 1)
                return 9;
        }
    } else {
        pthread_t thread;
        if (write(1, ".", 1) != 1 || pthread_create(&thread, NULL, last_thread, NULL) != 0)
            return 9;
        pthread_exit(NULL);
    }
    return 0;
}
