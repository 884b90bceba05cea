/* An engine that costs next to nothing: OpenAI's chat completions as vLLM answers them, without a model.
 *
 *   engine PORT...
 *
 * A request's "max_tokens" says how many chunks come, its "seed" how many microseconds lie between two of them
 * (0: as fast as the connection takes them), its "stream" whether it is a stream. All three are ordinary
 * fields, so that every gateway passes them on. One thread, one write per chunk.
 */
#include "common.h"

#define MAX_FDS 65536
#define MAX_REQUEST (1 << 20)
#define OUT_SIZE 2048
#define ID "\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":"
#define CHUNK "data: {" ID "\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\",\"choices\":"
#define TOKEN_START CHUNK "[{\"index\":0,\"delta\":{\"content\":\" @"
#define TOKEN_END "\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n"
#define USAGE "\"usage\":{\"prompt_tokens\":10,\"total_tokens\":%lld,\"completion_tokens\":%lld}"
#define LAST CHUNK "[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n" \
             CHUNK "[]," USAGE "}\n\ndata: [DONE]\n\n"

typedef struct {
    int fd;
    bool streaming, blocked, keep;
    int64_t tokens, left, interval;
    int in_size, in_room;
    char *in;
    int out_from, out_to;
    char out[OUT_SIZE];
} connection;

static connection *connections[MAX_FDS];
/* When the next chunk of a connection is due. Apart, so that looking for the next one stays in the cache. */
static int64_t due[MAX_FDS];
static int highest, epoll_fd;

static void watch(connection *c) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (c->blocked ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void end(connection *c) {
    connections[c->fd] = NULL;
    due[c->fd] = FOREVER;
    close(c->fd);
    free(c->in);
    free(c);
}

/* Write what is waiting. False when the connection is dead. */
static bool flush_out(connection *c) {
    while (c->out_from < c->out_to) {
        ssize_t n = send(c->fd, c->out + c->out_from, (size_t)(c->out_to - c->out_from), MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return false;
            if (!c->blocked) {
                c->blocked = true;
                watch(c);
            }
            return true;
        }
        c->out_from += (int)n;
    }
    c->out_from = c->out_to = 0;
    if (c->blocked) {
        c->blocked = false;
        watch(c);
    }
    return true;
}

static bool say(connection *c, const char *type, const char *body) {
    c->out_to += snprintf(c->out + c->out_to, (size_t)(OUT_SIZE - c->out_to),
                          "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-length: %zu\r\ncontent-type: %s\r\n\r\n%s",
                          strlen(body), type, body);
    return flush_out(c);
}

/* A number in the body's JSON; good enough for what our own load generator wrote. */
static int64_t number(const char *body, const char *key, int64_t otherwise) {
    const char *at = strstr(body, key);
    if (!at) return otherwise;
    at += strlen(key);
    while (*at == ' ' || *at == ':') at++;
    return atoll(at);
}

static bool complete(connection *c, const char *body) {
    const char *stream = strstr(body, "\"stream\"");
    if (stream) {
        stream += strlen("\"stream\"");
        while (*stream == ' ' || *stream == ':') stream++;
    }
    c->tokens = c->left = number(body, "\"max_tokens\"", 16);
    c->interval = number(body, "\"seed\"", 0);
    if (stream && *stream == 't') {
        c->streaming = true;
        due[c->fd] = now_us();
        c->out_to += snprintf(c->out + c->out_to, (size_t)(OUT_SIZE - c->out_to),
                              "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                              "transfer-encoding: chunked\r\n\r\n");
        return flush_out(c);
    }
    char answer[1024];
    snprintf(answer, sizeof answer,
             "{" ID "\"chat.completion\",\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
             "\"message\":{\"role\":\"assistant\",\"content\":\"A short answer of no model at all.\"},"
             "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]," USAGE "}",
             (long long)c->tokens + 10, (long long)c->tokens);
    return say(c, "application/json", answer);
}

/* Emit the next chunk of a stream. False when the connection is dead. */
static bool step(connection *c) {
    int64_t now = now_us();
    if (c->left > 0) {
        c->left--;
        c->out_to = snprintf(c->out, OUT_SIZE, "%zx\r\n" TOKEN_START "%0*lld" TOKEN_END "\r\n",
                             strlen(TOKEN_START) + STAMP_DIGITS + strlen(TOKEN_END), STAMP_DIGITS, (long long)now);
        /* Late ones do not run after their time in a burst. */
        due[c->fd] = due[c->fd] + c->interval > now ? due[c->fd] + c->interval : now;
    } else {
        char last[1024];
        int size = snprintf(last, sizeof last, LAST, (long long)c->tokens + 10, (long long)c->tokens);
        c->out_to = snprintf(c->out, OUT_SIZE, "%x\r\n%s\r\n0\r\n\r\n", (unsigned)size, last);
        c->streaming = false;
        due[c->fd] = FOREVER;
    }
    return flush_out(c) && (c->streaming || c->keep);
}

/* Answer the requests that have arrived whole. False when the connection is dead. */
static bool serve(connection *c) {
    while (!c->streaming && !c->blocked && c->in_size) {
        c->in[c->in_size] = 0;
        char *body = strstr(c->in, "\r\n\r\n");
        if (!body) return c->in_size < c->in_room;
        body += 4;
        char first = *body;
        *body = 0;
        const char *length = header(c->in, "content-length:"), *coding = header(c->in, "transfer-encoding:");
        const char *wish = header(c->in, "connection:");
        c->keep = !wish || strncasecmp(wish, "close", 5);
        int size = (int)(body - c->in) + (length ? atoi(length) : 0);
        bool get = !strncmp(c->in, "GET ", 4);
        char *path = strchr(c->in, ' ') + 1;
        *body = first;
        if (size > MAX_REQUEST) return false;
        if (coding) {
            char *last = strstr(body, "0\r\n\r\n");
            if (!last) return true;
            size = (int)(last + 5 - c->in);
        }
        if (c->in_size < size) return true;
        char next = c->in[size];
        c->in[size] = 0;
        bool alive;
        if (!get && strstr(path, "/completions ") && strstr(path, "/completions ") < body)
            alive = complete(c, body);
        else if (!strncmp(path, "/v1/models", 10))
            alive = say(c, "application/json",
                        "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
                        "\"owned_by\":\"vllm\",\"root\":\"mock\",\"max_model_len\":131072}]}");
        else if (!strncmp(path, "/version", 8))
            alive = say(c, "application/json", "{\"version\":\"0.33.0\"}");
        else if (!strncmp(path, "/metrics", 8))
            alive = say(c, "text/plain; version=0.0.4",
                        "vllm:num_requests_running{model_name=\"mock\"} 0\n"
                        "vllm:num_requests_waiting{model_name=\"mock\"} 0\n");
        else
            alive = say(c, "text/plain", "");
        c->in[size] = next;
        c->in_size -= size;
        memmove(c->in, c->in + size, (size_t)c->in_size);
        if (!alive || (!c->streaming && !c->keep)) return false;
    }
    return true;
}

static bool receive(connection *c) {
    if (c->in_size == c->in_room) {
        if (c->in_room >= MAX_REQUEST) return false;
        c->in_room = c->in_room ? c->in_room * 4 : 4096;
        c->in = realloc(c->in, (size_t)c->in_room + 1);
        if (!c->in) die("realloc");
    }
    ssize_t n = recv(c->fd, c->in + c->in_size, (size_t)(c->in_room - c->in_size), 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    c->in_size += (int)n;
    return serve(c);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        send_at_once(fd);
        connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        connections[fd] = c;
        if (fd > highest) highest = fd;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int count, char **words) {
    if (count < 2) {
        fprintf(stderr, "usage: engine PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    allow_many_files();
    for (int fd = 0; fd < MAX_FDS; fd++) due[fd] = FOREVER;
    epoll_fd = epoll_create1(0);
    int last_listener = 0;
    for (int i = 1; i < count; i++) {
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        struct sockaddr_in address = loopback(atoi(words[i]));
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");
        struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
        last_listener = listener;
    }
    struct epoll_event events[1024];
    for (;;) {
        int64_t next = FOREVER;
        for (int fd = 0; fd <= highest; fd++)
            if (due[fd] < next && !connections[fd]->blocked) next = due[fd];
        int ready = wait_until(epoll_fd, events, 1024, next);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd <= last_listener) {
                accept_all(fd);
                continue;
            }
            connection *c = connections[fd];
            bool alive = !(events[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP));
            if (alive && events[i].events & EPOLLOUT) alive = flush_out(c) && serve(c);
            if (alive && events[i].events & EPOLLIN) alive = receive(c);
            if (!alive) end(c);
        }
        int64_t now = now_us();
        for (int fd = 0; fd <= highest; fd++) {
            connection *c = connections[fd];
            if (due[fd] <= now && !c->blocked && !(step(c) && serve(c))) end(c);
        }
    }
}
