/* A client of the benchmark that sends requests at a given rate, however fast they are answered (open loop): at
 * the times of a Poisson process, as many independent clients do together, and asleep between them. The latency
 * of a request counts from the time at which it was due, so that nothing is left out that it waited for: a free
 * connection, or this client's turn on a core. wrk sends the next request only after a response.
 *
 * It connects, sends one request on each connection, writes "ready", waits for a line from its input, and ends
 * with one line of JSON; times in µs. Not supported: pipelining, responses without Content-Length, and a server
 * that closes: that ends it with an error. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RESPONSE = 8 * 1024, SECOND = 1000 * 1000 * 1000 };
static const uint64_t PATIENCE = 10ull * SECOND; /* longest wait for a response */

struct connection {
    int socket;
    uint64_t due; /* when its request was due, in ns */
    size_t length;
    char response[RESPONSE];
};

static const char *request;
static size_t request_length;
static int epoll;

/* The idle connections, the one that has been idle longest first: a ring of `capacity`. */
static struct connection **idle;
static size_t capacity, first_idle, count_idle;

static void park(struct connection *connection) {
    idle[(first_idle + count_idle++) % capacity] = connection;
}

static struct connection *unpark(void) {
    struct connection *connection = idle[first_idle];
    first_idle = (first_idle + 1) % capacity;
    count_idle--;
    return connection;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + time.tv_nsec;
}

static void send_request(struct connection *connection, uint64_t due) {
    connection->due = due;
    connection->length = 0;
    if (send(connection->socket, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length)
        err(1, "send");
}

/* Whether the response that begins in the buffer is complete. */
static int is_complete(const struct connection *connection) {
    static const char HEAD[] = "HTTP/1.1 200 ", BLANK[] = "\r\n\r\n", LENGTH[] = "\r\nContent-Length:";
    const char *blank = strstr(connection->response, BLANK);
    if (!blank)
        return 0;
    const char *length = strcasestr(connection->response, LENGTH);
    if (strncmp(connection->response, HEAD, sizeof HEAD - 1) || !length || length > blank)
        errx(1, "not a response of status 200 with a Content-Length:\n%s", connection->response);
    size_t content = strtoul(length + sizeof LENGTH - 1, NULL, 10);
    return connection->length >= (size_t)(blank - connection->response) + sizeof BLANK - 1 + content;
}

/* Reads what has come; returns whether the response is complete. */
static int receive(struct connection *connection) {
    size_t room = RESPONSE - 1 - connection->length;
    ssize_t received = recv(connection->socket, connection->response + connection->length, room, 0);
    if (received < 0)
        err(1, "receive");
    if (received == 0)
        errx(1, "the server closed a connection, or a response is longer than %d bytes", RESPONSE - 1);
    connection->length += received;
    connection->response[connection->length] = 0;
    return is_complete(connection);
}

static void open_connection(struct connection *connection, const struct sockaddr_in *address) {
    const int on = 1;
    connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->socket < 0 || connect(connection->socket, (struct sockaddr *)address, sizeof *address) < 0 ||
        setsockopt(connection->socket, SOL_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        err(1, "connect");
    send_request(connection, now());
    while (!receive(connection))
        ;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->socket, &event) < 0)
        err(1, "epoll_ctl");
    park(connection);
}

/* Waits until responses come, or until a time in ns; returns the number of connections to read. */
static int wait_until(uint64_t time, struct epoll_event *events, int most) {
    uint64_t before = now(), left = time > before ? time - before : 0;
    struct timespec timeout = {.tv_sec = left / SECOND, .tv_nsec = left % SECOND};
    int ready = epoll_pwait2(epoll, events, most, &timeout, NULL);
    if (ready < 0)
        err(1, "epoll_pwait2");
    return ready;
}

/* Sends `total` requests; returns the ns until the last response. `late` is how long after its time a request
 * was sent, in ns. */
static uint64_t run(double rate, size_t total, uint64_t *latency, uint64_t *late) {
    struct epoll_event events[64];
    uint64_t begun = now(), due = begun;
    for (size_t sent = 0, answered = 0; answered < total;) {
        uint64_t time = now();
        while (sent < total && due <= time && count_idle) {
            send_request(unpark(), due);
            late[sent++] = now() - due;
            due += -log(1 - drand48()) / rate * SECOND;
        }
        int can_send = sent < total && count_idle;
        int ready = wait_until(can_send ? due : time + PATIENCE, events, 64);
        if (!can_send && ready == 0)
            errx(1, "no response within %llu s", (unsigned long long)(PATIENCE / SECOND));
        for (int each = 0; each < ready; each++) {
            struct connection *connection = events[each].data.ptr;
            if (!receive(connection))
                continue;
            latency[answered++] = now() - connection->due;
            park(connection);
        }
    }
    return now() - begun;
}

static int compare(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The value, in µs, that a part of sorted values in ns is not above. */
static unsigned long long percentile(const uint64_t *sorted, size_t total, double part) {
    size_t rank = ceil(part * total);
    return sorted[rank ? rank - 1 : 0] / 1000;
}

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory)
        err(1, "allocate memory");
    return memset(memory, 0, count * size); /* no page fault later */
}

int main(int count, char **arguments) {
    if (count != 8)
        errx(2, "expected ADDRESS PORT CONNECTIONS RATE REQUESTS SEED REQUEST");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    if (inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        errx(2, "%s: expected an IPv4 address", arguments[1]);
    double rate = atof(arguments[4]);
    size_t total = strtoul(arguments[5], NULL, 10);
    capacity = strtoul(arguments[3], NULL, 10);
    if (!capacity || !total || !(rate > 0))
        errx(2, "expected a number of connections, a rate and a number of requests above 0");
    srand48(atol(arguments[6]));
    request = arguments[7];
    request_length = strlen(request);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || prctl(PR_SET_TIMERSLACK, 1) < 0)
        err(1, "prepare to wait");

    idle = zeroed(capacity, sizeof *idle);
    struct connection *connections = zeroed(capacity, sizeof *connections);
    uint64_t *latency = zeroed(total, sizeof *latency), *late = zeroed(total, sizeof *late);
    for (size_t each = 0; each < capacity; each++)
        open_connection(&connections[each], &address);
    puts("ready");
    fflush(stdout);
    getchar();

    uint64_t taken = run(rate, total, latency, late);
    qsort(latency, total, sizeof *latency, compare);
    qsort(late, total, sizeof *late, compare);
    printf("{\"requests\": %zu, \"microseconds\": %llu, \"p50\": %llu, \"p99\": %llu, \"p99_9\": %llu, "
           "\"late_p99\": %llu}\n",
           total, (unsigned long long)taken / 1000, percentile(latency, total, 0.5),
           percentile(latency, total, 0.99), percentile(latency, total, 0.999), percentile(late, total, 0.99));
}
