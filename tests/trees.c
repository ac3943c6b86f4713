/* Process trees for the tests.  usage: tree LOG_FD SHAPE MODE COUNT
 *
 * Every process writes lines to LOG_FD: "R pid" when it is ready, "T pid" when TERM arrives, "C pid"
 * when CONT does; the main process writes "M pid" when its whole tree is ready.
 * MODE says what a process does with TERM: l log it and live on, x log it and exit, i ignore it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int log_fd, count;
static char mode;

static void tell(char what)
{
    char line[16], digits[12];
    int n = 0, d = 0, pid = getpid();
    line[n++] = what;
    line[n++] = ' ';
    do
        digits[d++] = (char)('0' + pid % 10);
    while (pid /= 10);
    while (d)
        line[n++] = digits[--d];
    line[n++] = '\n';
    if (write(log_fd, line, (size_t)n) != n)
        _exit(9);
}

static void on_signal(int signo)
{
    tell(signo == SIGTERM ? 'T' : 'C');
    if (signo == SIGTERM && mode == 'x')
        _exit(0);
}

static void set_mode(char m)
{
    mode = m;
    signal(SIGTERM, m == 'i' ? SIG_IGN : on_signal);
    signal(SIGCONT, on_signal);
}

static void linger(void)
{
    for (;;)
        pause();
}

static void leaf(void)
{
    tell('R');
    linger();
}

/* A pipe whose end is reached when everybody who held it has said that he is ready. */
static int gate[2];

static void leaf_and_open_gate(void)
{
    tell('R');
    close(gate[0]);
    close(gate[1]);
    linger();
}

static void wait_for_gate(void)
{
    char byte;
    close(gate[1]);
    while (read(gate[0], &byte, 1) != 0)
        continue;
    close(gate[0]);
}

/* Forks away from whoever looks for it.  It ends by itself, whatever happens. */
static void relay(int hops, int pause_us)
{
    for (; hops > 0; hops--) {
        if (fork() != 0)
            _exit(0);
        setsid();
        if (fork() != 0)
            _exit(0);
        if (pause_us)
            usleep((useconds_t)pause_us);
    }
    _exit(0);
}

static void chain(int left)
{
    while (left-- > 1 && fork() == 0)
        continue;
    leaf_and_open_gate();
}

static sem_t forked;

static void *forking_thread(void *unused)
{
    (void)unused;
    if (fork() == 0)
        leaf_and_open_gate();
    sem_post(&forked);
    linger();
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    /* Started setuid: take the identity over entirely, as su does, or kill(2) still lets our starter. */
    uid_t uid = geteuid();
    if (uid != getuid() && setresuid(uid, uid, uid))
        return 3;
    log_fd = atoi(argv[1]);
    const char *shape = argv[2];
    count = atoi(argv[4]);
    set_mode(argv[3][0]);
    if (pipe2(gate, O_CLOEXEC))
        return 3;
    if (strcmp(shape, "plain") == 0 || strcmp(shape, "sessions") == 0 || strcmp(shape, "orphans") == 0) {
        for (int i = 0; i < count; i++)
            if (fork() == 0) {
                if (shape[0] == 's')
                    setsid();
                leaf_and_open_gate();
            }
    } else if (strcmp(shape, "daemons") == 0) {
        for (int i = 0; i < count; i++) {
            if (fork() == 0) {
                setsid();
                if (fork() == 0)
                    leaf_and_open_gate();
                _exit(0);
            }
            wait(NULL);
        }
    } else if (strcmp(shape, "relays") == 0 || strcmp(shape, "storm") == 0) {
        /* relays go on for 20 s and leave the machine room; a storm leaves none, and is soon over */
        for (int i = 0; i < count; i++)
            if (fork() == 0) {
                close(gate[0]);
                close(gate[1]);
                shape[0] == 'r' ? relay(2000, 10000) : relay(100, 0);
            }
    } else if (strcmp(shape, "stopped") == 0) {
        for (int i = 0; i < count; i++) {
            pid_t pid = fork();
            if (pid == 0) {
                close(gate[0]);
                close(gate[1]);
                tell('R');
                raise(SIGSTOP);
                linger();
            }
            waitpid(pid, NULL, WUNTRACED);
        }
    } else if (strcmp(shape, "chain") == 0) {
        if (count > 1 && fork() == 0)
            chain(count - 1);
    } else if (strcmp(shape, "threads") == 0) {
        for (int i = 0; i < count; i++) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, forking_thread, NULL))
                return 4;
        }
        for (int i = 0; i < count; i++) /* the threads share our descriptors: not before all have forked */
            sem_wait(&forked);
    } else if (strcmp(shape, "middles") == 0) {
        /* main lives through TERM, its children end by it, their children live through it */
        for (int i = 0; i < count; i++)
            if (fork() == 0) {
                if (fork() == 0)
                    leaf_and_open_gate();
                set_mode('x');
                leaf_and_open_gate();
            }
    } else if (strcmp(shape, "helper") == 0) {
        /* at TERM main starts a helper; nothing is to be told that helper while main lives */
        sigset_t term;
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        sigprocmask(SIG_BLOCK, &term, NULL);
        wait_for_gate();
        tell('M');
        int got;
        sigwait(&term, &got);
        tell('T');
        sigprocmask(SIG_UNBLOCK, &term, NULL);
        if (fork() == 0)
            leaf();
        linger();
    } else {
        return 2;
    }
    wait_for_gate();
    tell('R');
    tell('M');
    if (shape[0] == 'o') /* the children are left behind */
        return 5;
    linger();
}
