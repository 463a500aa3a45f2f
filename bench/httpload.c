/* Devices over HTTP, each with its own name and password: a closed loop, or a connection each, or all of them parked.
 *
 *     httpload HOST PORT MODE CONNECTIONS FIRST DEVICES REQUESTS [PERIOD_MS SECONDS] < body
 *
 * MODE keep: CONNECTIONS kept alive, each sends the next request when its last is answered; mixed: the same, and devices that come
 * together are not neighbours in any index, as those of a fleet are not; close: each request has a connection
 * of its own; park: one connection a device, which waits (ct=250). Request n is of device FIRST + n % DEVICES, d%07d@fleet, whose
 * password is p%07d. "########" in the body becomes a number that differs from run to run, too. In mode park a line "parked" is printed when all
 * have sent, in mode fleet "connected" where all are, before any has; fleet: each connection is one device, which sends every PERIOD_MS, for SECONDS, the first ones spread over one
 * period (0: all at once, and once each); what is answered 503 it sends again after Retry-After and not before. Prints: answers, 2xx among them, 503 among them, us on the monotonic clock of the first and of the last answer,
 * latency p50 and p99 of the 2xx, and the longest of all, in us.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 65536
#define SAMPLES_MAX 4000000

typedef struct { int fd; uint64_t sent_us; uint32_t have, next; char in[768]; } peer_t;

#define WHEEL 65536 /* ms */
#define CONNECTED_US 3000000 /* for the server to have accepted them */
#define NONE 0xffffffffu
#define SCATTER 7919ull /* a prime */

static peer_t *peers;
static uint32_t *samples;
static struct sockaddr_in to;
static char body[4096];
static size_t body_size, mark;
static int epoll, closing, parking, fleet, mixed;
static uint32_t wheel[WHEEL];
static uint32_t first, devices, total, next_request, said;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void base64(char *out, const char *in, size_t size) {
    static const char *digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t v = (uint32_t)(uint8_t)in[i] << 16;
        if (i + 1 < size) v |= (uint32_t)(uint8_t)in[i + 1] << 8;
        if (i + 2 < size) v |= (uint8_t)in[i + 2];
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < size ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < size ? digits[v & 63] : '=';
    }
    *out = 0;
}

static int open_one(uint32_t index) {
    peer_t *p = &peers[index];
    p->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (p->fd < 0) return perror("socket"), -1;
    for (int tries = 0; connect(p->fd, (struct sockaddr *)&to, sizeof to) < 0; tries++) {
        if (tries > 200) return perror("connect"), -1;
        usleep(5000);
    }
    int one = 1;
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = index};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &e);
}

/* Have a device of mode fleet send at that ms, less than WHEEL from now. */
static void plan(uint32_t index, uint64_t ms) {
    peers[index].next = wheel[ms % WHEEL];
    wheel[ms % WHEEL] = index;
}

/* Send the next request of all; return whether there was one. */
static int send_next(uint32_t index) {
    peer_t *p = &peers[index];
    char out[6000], name[64], secret[96];
    if (!fleet && next_request >= total) return 0;
    uint32_t n = next_request++, device = first + (uint32_t)((fleet ? index : n) * (mixed ? SCATTER : 1) % devices);
    int size = snprintf(name, sizeof name, "d%07u@fleet:p%07u", device, device);
    base64(secret, name, (size_t)size);
    if (mark != (size_t)-1) {
        char number[16];
        snprintf(number, sizeof number, "%08u", (said + n) % 100000000);
        memcpy(body + mark, number, 8);
    }
    size = snprintf(out, sizeof out, "POST /v1/dfu%s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %s\r\n%sContent-Length: %zu\r\n\r\n",
                    parking ? "?ct=250" : "", secret, closing ? "Connection: close\r\n" : "", body_size);
    memcpy(out + size, body, body_size);
    p->have = 0;
    p->sent_us = now_us();
    if (send(p->fd, out, (size_t)size + body_size, MSG_NOSIGNAL) < 0) perror("send");
    return 1;
}

/* Return whether the answer is whole. */
static int whole(peer_t *p) {
    char *end = memmem(p->in, p->have, "\r\n\r\n", 4);
    if (!end) return 0;
    p->in[p->have < sizeof p->in ? p->have : sizeof p->in - 1] = 0;
    char *length = strcasestr(p->in, "content-length:");
    return p->have >= (size_t)(end - p->in) + 4 + (length ? (size_t)atoi(length + 15) : 0) || p->have + 1 >= sizeof p->in;
}

int main(int argc, char **argv) {
    if (argc != 8 && argc != 10) return 2;
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    closing = !strcmp(argv[3], "close");
    parking = !strcmp(argv[3], "park");
    fleet = argc == 10;
    mixed = fleet || !strcmp(argv[3], "mixed");
    uint64_t period_ms = fleet ? strtoull(argv[8], 0, 10) : 0, end_us = 0;
    memset(wheel, 0xff, sizeof wheel);
    uint32_t connections = (uint32_t)atoi(argv[4]);
    first = (uint32_t)atoi(argv[5]);
    devices = (uint32_t)atoi(argv[6]);
    total = (uint32_t)atoi(argv[7]);
    if (!connections || connections > CONNECTIONS_MAX || !devices || !total) return 2;
    struct rlimit files = {CONNECTIONS_MAX, CONNECTIONS_MAX};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    body_size = fread(body, 1, sizeof body - 1, stdin);
    char *found = memmem(body, body_size, "########", 8);
    mark = found ? (size_t)(found - body) : (size_t)-1;
    said = (uint32_t)(now_us() / 1000 % 100000000);
    peers = calloc(connections, sizeof *peers);
    samples = malloc(sizeof *samples * SAMPLES_MAX);
    epoll = epoll_create1(0);
    uint64_t answers = 0, good = 0, away = 0, began = 0, last = 0;
    uint32_t kept = 0, live = 0, longest = 0;
    for (uint32_t i = 0; i < connections && next_request < total; i++) {
        if (open_one(i) < 0) return 1;
        if (!fleet) live += (uint32_t)send_next(i);
    }
    if (period_ms) usleep(CONNECTED_US);
    if (parking || period_ms) printf(parking ? "parked\n" : "connected\n"), fflush(stdout);
    uint64_t tick = now_us() / 1000;
    if (fleet) {
        live = connections;
        end_us = now_us() + strtoull(argv[9], 0, 10) * 1000000;
        for (uint32_t i = 0; i < connections; i++) plan(i, tick + 1 + (period_ms ? i * period_ms / connections : 0));
    }
    while (live) {
        struct epoll_event events[256];
        for (uint64_t now = now_us() / 1000; fleet && tick < now;) {
            uint32_t due = wheel[++tick % WHEEL];
            wheel[tick % WHEEL] = NONE;
            for (uint32_t next; due != NONE; due = next) next = peers[due].next, send_next(due);
        }
        if (fleet && (now_us() >= end_us || (!period_ms && good == connections))) break;
        int n = epoll_wait(epoll, events, 256, fleet ? 1 : 60000);
        if (!n && fleet) continue;
        if (n <= 0) { fprintf(stderr, "no answer for a minute: %u wait\n", live); break; }
        for (int k = 0; k < n; k++) {
            uint32_t index = events[k].data.u32;
            peer_t *p = &peers[index];
            ssize_t size = recv(p->fd, p->in + p->have, sizeof p->in - 1 - p->have, 0);
            if (size <= 0) {
                close(p->fd);
                live--;
                continue;
            }
            p->have += (uint32_t)size;
            if (!whole(p)) continue;
            last = now_us();
            if (!began) began = last;
            answers++;
            good += p->in[9] == '2';
            away += !memcmp(p->in + 9, "503", 3);
            if (last - p->sent_us > longest) longest = (uint32_t)(last - p->sent_us);
            if (p->in[9] == '2' && kept < SAMPLES_MAX) samples[kept++] = (uint32_t)(last - p->sent_us);
            p->sent_us = 0;
            if (closing) {
                close(p->fd);
                if (next_request < total && open_one(index) < 0) return 1;
            }
            if (fleet) {
                char *after = strcasestr(p->in, "retry-after:");
                uint64_t wait_ms = after ? strtoull(after + 12, 0, 10) * 1000 : period_ms, at = last / 1000 + wait_ms;
                if (wait_ms && wait_ms < WHEEL) plan(index, at > tick ? at : tick + 1);
            } else if (!send_next(index)) live--;
        }
    }
    for (uint32_t i = 0; fleet && i < connections; i++)
        if (peers[i].sent_us && now_us() - peers[i].sent_us > longest) longest = (uint32_t)(now_us() - peers[i].sent_us);
    qsort(samples, kept, sizeof *samples, by_size);
    printf("%llu %llu %llu %llu %llu %u %u %u\n", (unsigned long long)answers, (unsigned long long)good, (unsigned long long)away,
           (unsigned long long)began, (unsigned long long)last, kept ? samples[kept / 2] : 0,
           kept ? samples[(uint64_t)kept * 99 / 100] : 0, longest);
    fflush(stdout); /* who measures does so before the connections are closed */
    if (fleet) usleep(100000);
    return 0;
}
