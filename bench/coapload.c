/* A closed loop of confirmable CoAP requests: each socket sends the next one when its last is answered.
 *
 *     coapload HOST PORT SECONDS SOCKETS [once] < requests
 *
 * A line of the input is a request in hexadecimal without version, type and identifiers: the code, then options and payload.
 * Socket k uses line k, then line k + SOCKETS, and so on, from the first one again; or, once, until there is none left, as requests under
 * OSCORE are good for one time. Prints: answers, 2.xx among them, repetitions, latency p50 and p99 in us, us that it took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINES_MAX 65536
#define SOCKETS_MAX 1024
#define SAMPLES_MAX 4000000
#define REPEAT_US 1000000

typedef struct { uint8_t *data; size_t size; } request_t;
typedef struct { int fd; uint16_t id; uint32_t line; uint64_t sent_us; uint8_t out[1600]; size_t size; } peer_t;

static request_t requests[LINES_MAX];
static peer_t peers[SOCKETS_MAX];
static uint32_t samples[SAMPLES_MAX];
static uint32_t lines, sockets, live;
static int once;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void send_next(peer_t *p) {
    if (once && p->line >= lines) {
        p->sent_us = UINT64_MAX / 2;
        live--;
        return;
    }
    const request_t *r = &requests[p->line % lines];
    p->line += sockets;
    p->id++;
    p->out[0] = 0x42; /* version 1, CON, a token of two bytes */
    p->out[1] = r->data[0];
    p->out[2] = p->out[4] = (uint8_t)(p->id >> 8);
    p->out[3] = p->out[5] = (uint8_t)p->id;
    memcpy(p->out + 6, r->data + 1, r->size - 1);
    p->size = r->size + 5;
    p->sent_us = now_us();
    if (send(p->fd, p->out, p->size, 0) < 0) perror("send");
}

int main(int argc, char **argv) {
    static char line[8192];
    if (argc != 5 && argc != 6) return 2;
    once = argc == 6;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    double seconds = atof(argv[3]);
    sockets = (uint32_t)atoi(argv[4]);
    if (sockets < 1 || sockets > SOCKETS_MAX) return 2;
    while (lines < LINES_MAX && fgets(line, sizeof line, stdin)) {
        size_t size = strcspn(line, "\n") / 2;
        if (!size || size > 1500) return 2;
        requests[lines].data = malloc(size);
        requests[lines].size = size;
        for (size_t i = 0; i < size; i++) sscanf(line + 2 * i, "%2hhx", &requests[lines].data[i]);
        lines++;
    }
    if (!lines) return 2;
    int epoll = epoll_create1(0);
    srand((unsigned)now_us());
    for (uint32_t i = 0; i < sockets; i++) {
        peer_t *p = &peers[i];
        p->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        p->line = i;
        p->id = (uint16_t)rand();
        if (connect(p->fd, (struct sockaddr *)&to, sizeof to)) return perror("connect"), 1;
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &e);
    }
    uint64_t start = now_us(), end = start + (uint64_t)(seconds * 1e6), next_check = start;
    uint64_t answers = 0, good = 0, repeated = 0;
    uint32_t kept = 0;
    live = sockets;
    for (uint32_t i = 0; i < sockets; i++) send_next(&peers[i]);
    while (live) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 100);
        uint64_t now = now_us();
        if (now >= end) break;
        for (int k = 0; k < n; k++) {
            peer_t *p = &peers[events[k].data.u32];
            uint8_t in[2048];
            ssize_t size = recv(p->fd, in, sizeof in, 0);
            if (size < 6 || in[4] != p->out[4] || in[5] != p->out[5]) continue;
            answers++;
            good += in[1] >> 5 == 2;
            if (kept < SAMPLES_MAX) samples[kept++] = (uint32_t)(now_us() - p->sent_us);
            send_next(p);
        }
        if (now >= next_check) {
            next_check = now + 200000;
            for (uint32_t i = 0; i < sockets; i++)
                if (now > peers[i].sent_us + REPEAT_US) {
                    repeated++;
                    peers[i].sent_us = now;
                    if (send(peers[i].fd, peers[i].out, peers[i].size, 0) < 0) perror("send");
                }
        }
    }
    uint64_t took_us = now_us() - start;
    qsort(samples, kept, sizeof *samples, by_size);
    printf("%llu %llu %llu %u %u %llu\n", (unsigned long long)answers, (unsigned long long)good, (unsigned long long)repeated,
           kept ? samples[kept / 2] : 0, kept ? samples[(uint64_t)kept * 99 / 100] : 0, (unsigned long long)took_us);
    return 0;
}
