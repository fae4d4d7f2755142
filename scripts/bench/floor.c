/* The floor of the benchmark: the minimum of a blocking server. It reads a request with one read, searches
 * it for "Connection: close" only, and sends a fixed response with one write; it logs nothing. A thread serves
 * one connection, and then accepts the next. Not supported: requests in pieces, pipelining, errors of
 * clients, an orderly stop. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STACK = 16 * 1024, REQUEST = 2 * 1024, ANSWER = 4 * 1024, BACKLOG = 4096 };

struct answer {
    char bytes[ANSWER];
    size_t length;
};

static const char CLOSE[] = "Connection: close\r\n";
static struct answer keep_alive, last;
static int listener;
static atomic_int waiting; /* threads that wait for a connection */

static void serve(int connection) {
    char request[REQUEST];
    ssize_t received;
    while ((received = read(connection, request, sizeof request)) > 0) {
        bool is_last = memmem(request, received, CLOSE, sizeof CLOSE - 1) != NULL;
        const struct answer *answer = is_last ? &last : &keep_alive;
        ssize_t sent = write(connection, answer->bytes, answer->length);
        if (sent != (ssize_t)answer->length || is_last)
            return;
    }
}

static void start(void);

static void *work(void *unused) {
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0 && errno == ECONNABORTED)
            continue;
        if (connection < 0)
            err(1, "accept");
        if (atomic_fetch_sub(&waiting, 1) == 1)
            start();
        serve(connection);
        close(connection);
        atomic_fetch_add(&waiting, 1);
    }
    return unused;
}

static void start(void) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    atomic_fetch_add(&waiting, 1);
    errno = pthread_create(&thread, &attributes, work, NULL);
    if (errno)
        err(1, "start a thread");
}

/* Composes a response of `length` bytes in total. */
static void compose(struct answer *answer, const char *field, int length) {
    static const char format[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %04d\r\n\r\n";
    int head = snprintf(NULL, 0, format, field, 0);
    if (length < head || length >= ANSWER)
        errx(2, "an answer has %d to %d bytes", head, ANSWER - 1);
    snprintf(answer->bytes, ANSWER, format, field, length - head);
    memset(answer->bytes + head, '.', length - head);
    answer->length = length;
}

int main(int count, char **arguments) {
    if (count != 4)
        errx(2, "expected ADDRESS PORT LENGTH");
    compose(&keep_alive, "", atoi(arguments[3]));
    compose(&last, CLOSE, atoi(arguments[3]));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    if (inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        errx(2, "%s: expected an IPv4 address", arguments[1]);
    signal(SIGPIPE, SIG_IGN);
    const int on = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_IP, IP_TRANSPARENT, &on, sizeof on) < 0 ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(listener, SOL_TCP, TCP_NODELAY, &on, sizeof on) < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        err(1, "listen at %s:%s", arguments[1], arguments[2]);
    start();
    for (;;)
        pause();
}
