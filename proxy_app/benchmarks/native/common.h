/* What the engine and the load generator share: a clock, and numbers out of text. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Every streamed token carries the time at which it was written, so that its way can be timed: "@" and this
   many digits of CLOCK_MONOTONIC in microseconds, which all processes of a machine share. */
#define STAMP_DIGITS 16
#define FOREVER INT64_MAX

static inline int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void allow_many_files(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void send_at_once(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Wait for events, at most until `until` (FOREVER: as long as it takes). */
static inline int wait_until(int epoll, struct epoll_event *events, int count, int64_t until) {
    if (until == FOREVER) return epoll_wait(epoll, events, count, -1);
    int64_t left = until - now_us();
    if (left < 0) left = 0;
    struct timespec timeout = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
    return epoll_pwait2(epoll, events, count, &timeout, NULL);
}

/* The value of header `name` (lower case, with its colon) in a head that ends with a zero byte, or NULL. */
static inline const char *header(const char *head, const char *name) {
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, strlen(name))) {
            line += strlen(name);
            while (*line == ' ') line++;
            return line;
        }
    }
    return NULL;
}

#endif
