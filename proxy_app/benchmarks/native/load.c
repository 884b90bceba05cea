/* A load generator: keeps a number of connections busy and times what comes back.
 *
 *   load --port N --connections N --stream 0|1 --tokens N --interval US --body BYTES --ramp S --seconds S --key KEY
 *
 * Each connection asks again as soon as it has its answer. Their first requests are spread over the ramp, so
 * that streams are out of step with each other. What happens in the `seconds` after the ramp counts. Prints
 * "begin" and "end" at the two ends of that window, for others who measure too, then one JSON object. One thread.
 */
#include "common.h"
#include <getopt.h>

#define HEAD_ROOM 16384
#define FAILURE_PAUSE_US 20000

typedef enum { RESTING, WAITING, READING } state;
typedef enum { SIZE, DATA, DATA_END, TRAILER } coding;

typedef struct {
    int fd;
    state state;
    int64_t start_at, sent_at;
    bool first_seen, close_after;
    /* The head as it comes, then the framing of the body: chunked, or a length (-1: to the connection's end). */
    char head[HEAD_ROOM];
    int head_size;
    bool chunked, line_empty;
    coding coding;
    int64_t left;
    /* A time stamp as it comes: how many of its digits are there, or -1 outside of one. */
    int digits;
    int64_t stamp, tokens;
} client;

typedef struct {
    float *ms;
    size_t count, room;
} samples;

static int port = 8000, connections = 1, stream, body_bytes;
static int64_t tokens = 16, interval;
static double ramp = 1, seconds = 5;
static const char *key = "key";
static char *request;
static int request_size, epoll_fd;
static bool counting;
static int64_t requests, chunks, errors, errors_before;
static samples first_ms, chunk_ms;

static void note(samples *s, int64_t us) {
    if (!counting) return;
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->ms = realloc(s->ms, s->room * sizeof *s->ms);
        if (!s->ms) die("realloc");
    }
    s->ms[s->count++] = (float)us / 1000;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void percentile(const char *name, samples *s, double share) {
    if (s->count) printf("\"%s\":%.4f,", name, s->ms[(size_t)(share * (double)(s->count - 1) + 0.5)]);
    else printf("\"%s\":null,", name);
}

static void drop(client *c) {
    close(c->fd);
    c->fd = -1;
}

static void fail(client *c, int64_t now) {
    if (counting) errors++;
    else errors_before++;
    if (c->fd >= 0) drop(c);
    c->state = RESTING;
    c->start_at = now + FAILURE_PAUSE_US;
}

static void ask(client *c, int64_t now) {
    if (c->fd < 0) {
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in address = loopback(port);
        send_at_once(c->fd);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) return fail(c, now);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    }
    c->state = WAITING;
    c->head_size = 0;
    c->first_seen = false;
    c->tokens = 0;
    c->digits = -1;
    c->sent_at = now_us();
    if (send(c->fd, request, (size_t)request_size, MSG_NOSIGNAL) != request_size) fail(c, now);
}

static void finish(client *c, int64_t now) {
    if (stream && c->tokens < tokens) return fail(c, now);
    if (counting) requests++;
    c->state = RESTING;
    c->start_at = now;
    if (c->close_after) drop(c);
}

static void see_first(client *c, int64_t now) {
    if (c->first_seen) return;
    c->first_seen = true;
    note(&first_ms, now - c->sent_at);
}

/* Look for time stamps in a piece of a body; they may be cut anywhere. */
static void scan(client *c, const char *at, const char *end, int64_t now) {
    if (!stream) return see_first(c, now);
    while (at < end) {
        if (c->digits < 0) {
            at = memchr(at, '@', (size_t)(end - at));
            if (!at) return;
            at++;
            c->digits = 0;
            c->stamp = 0;
        } else if (*at < '0' || *at > '9') {
            c->digits = -1;
        } else {
            c->stamp = c->stamp * 10 + *at++ - '0';
            if (++c->digits < STAMP_DIGITS) continue;
            c->digits = -1;
            c->tokens++;
            if (counting) chunks++;
            see_first(c, now);
            note(&chunk_ms, now - c->stamp);
        }
    }
}

/* Read the head; returns how many bytes of the piece belong to it, or -1 when it is no good. */
static int take_head(client *c, const char *at, int size, int64_t now) {
    int had = c->head_size, room = HEAD_ROOM - 1 - had, more = size < room ? size : room;
    memcpy(c->head + had, at, (size_t)more);
    c->head_size += more;
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return more < size ? -1 : more;
    end[2] = 0;
    if (strncmp(c->head, "HTTP/1.1 200", 12)) return -1;
    const char *length = header(c->head, "content-length:"), *wish = header(c->head, "connection:");
    c->chunked = header(c->head, "transfer-encoding:") != NULL;
    c->left = c->chunked ? 0 : length ? atoll(length) : -1;
    c->close_after = c->left < 0 || (wish && !strncasecmp(wish, "close", 5));
    c->coding = SIZE;
    c->line_empty = true;
    c->state = READING;
    if (!c->chunked && c->left == 0) finish(c, now);
    return (int)(end + 4 - c->head) - had;
}

/* Take one step through the framing of a chunked body; returns the bytes used. */
static int take_chunked(client *c, const char *at, int size, int64_t now) {
    if (c->coding == DATA) {
        int part = size < c->left ? size : (int)c->left;
        scan(c, at, at + part, now);
        c->left -= part;
        if (!c->left) c->coding = DATA_END;
        return part;
    }
    char byte = *at;
    if (byte == '\n') {
        if (c->coding == SIZE) c->coding = c->left ? DATA : TRAILER;
        else if (c->coding == DATA_END) c->coding = SIZE;
        else if (c->line_empty) finish(c, now);
        c->line_empty = true;
    } else if (byte != '\r') {
        c->line_empty = false;
        if (c->coding == SIZE) {
            int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10;
            c->left = c->left * 16 + digit;
        }
    }
    return 1;
}

static void receive(client *c) {
    static char piece[1 << 18];
    ssize_t size = recv(c->fd, piece, sizeof piece, MSG_DONTWAIT);
    int64_t now = now_us();
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) {
        if (c->state == RESTING) return drop(c);
        if (c->state == READING && !c->chunked && c->left < 0) return finish(c, now);
        return fail(c, now);
    }
    for (int at = 0; at < size && c->state != RESTING;) {
        int used;
        if (c->state == WAITING) {
            used = take_head(c, piece + at, (int)size - at, now);
            if (used < 0) return fail(c, now);
        } else if (c->chunked) {
            used = take_chunked(c, piece + at, (int)size - at, now);
        } else {
            used = c->left < 0 || size - at < c->left ? (int)size - at : (int)c->left;
            scan(c, piece + at, piece + at + used, now);
            if (c->left > 0 && !(c->left -= used)) finish(c, now);
        }
        at += used;
    }
}

static void make_request(void) {
    char *prompt = malloc((size_t)body_bytes + 1), *body = malloc((size_t)body_bytes + 1024);
    request = malloc((size_t)body_bytes + 2048);
    if (!prompt || !body || !request) die("malloc");
    for (int i = 0; i < body_bytes; i++) prompt[i] = i % 7 == 6 ? ' ' : (char)('a' + i % 26);
    prompt[body_bytes] = 0;
    int size = sprintf(body,
                       "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"temperature\":0.7,"
                       "\"max_tokens\":%lld,\"seed\":%lld,\"stream\":%s}",
                       prompt, (long long)tokens, (long long)interval, stream ? "true" : "false");
    request_size = sprintf(request,
                           "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\n"
                           "content-type: application/json\r\naccept: */*\r\nuser-agent: load\r\n"
                           "content-length: %d\r\n\r\n%s",
                           port, key, size, body);
}

static void read_options(int count, char **words) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},   {"connections", 1, 0, 'c'}, {"stream", 1, 0, 's'}, {"tokens", 1, 0, 't'},
        {"interval", 1, 0, 'i'}, {"body", 1, 0, 'b'},      {"ramp", 1, 0, 'r'},   {"seconds", 1, 0, 'd'},
        {"key", 1, 0, 'k'},    {0, 0, 0, 0}};
    int option;
    while ((option = getopt_long(count, words, "", known, NULL)) != -1) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 's': stream = atoi(optarg); break;
        case 't': tokens = atoll(optarg); break;
        case 'i': interval = atoll(optarg); break;
        case 'b': body_bytes = atoi(optarg); break;
        case 'r': ramp = atof(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'k': key = optarg; break;
        default: exit(2);
        }
}

int main(int count, char **words) {
    read_options(count, words);
    signal(SIGPIPE, SIG_IGN);
    allow_many_files();
    make_request();
    epoll_fd = epoll_create1(0);
    client *clients = calloc((size_t)connections, sizeof *clients);
    if (!clients) die("calloc");
    int64_t start = now_us(), begin = start + (int64_t)(ramp * 1e6), stop = begin + (int64_t)(seconds * 1e6);
    for (int i = 0; i < connections; i++) {
        clients[i].fd = -1;
        clients[i].start_at = start + (begin - start) * i / connections;
    }
    struct epoll_event events[1024];
    for (int64_t now = start; now < stop; now = now_us()) {
        if (!counting && now >= begin) {
            counting = true;
            begin = now;
            puts("begin");
            fflush(stdout);
        }
        int64_t next = counting ? stop : begin;
        for (int i = 0; i < connections; i++) {
            if (clients[i].state != RESTING) continue;
            if (clients[i].start_at <= now) ask(&clients[i], now);
            else if (clients[i].start_at < next) next = clients[i].start_at;
        }
        int ready = wait_until(epoll_fd, events, 1024, next);
        for (int i = 0; i < ready; i++) {
            client *c = events[i].data.ptr;
            if (c->fd >= 0) receive(c);
            /* At once rather than after the others' turn: else each request waits for a whole round. */
            if (c->state == RESTING && c->start_at <= now_us()) ask(c, now_us());
        }
    }
    double lasted = (double)(now_us() - begin) / 1e6;
    puts("end");
    qsort(first_ms.ms, first_ms.count, sizeof(float), by_size);
    qsort(chunk_ms.ms, chunk_ms.count, sizeof(float), by_size);
    printf("{\"seconds\":%.4f,\"requests\":%lld,\"chunks\":%lld,\"errors_before\":%lld,", lasted, (long long)requests,
           (long long)chunks, (long long)errors_before);
    percentile("ttft_p50_ms", &first_ms, 0.5);
    percentile("ttft_p99_ms", &first_ms, 0.99);
    percentile("chunk_p50_ms", &chunk_ms, 0.5);
    percentile("chunk_p99_ms", &chunk_ms, 0.99);
    printf("\"errors\":%lld}\n", (long long)errors);
    return 0;
}
