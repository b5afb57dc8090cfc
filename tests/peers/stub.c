// A stub of an OpenAI-compatible server, as fast as one core allows, for measuring load generators: it
// streams tokens at given moments and keeps the true times at which it wrote them.
//
//   cc -O2 -o stub stub.c -lm && ./stub PORT TTFT_US GAP_US TOKENS [CLOSE_AFTER]
//
// Every POST is answered with a stream: a role event at once (it is no token), the first token after
// TTFT_US, then one each GAP_US, usage and [DONE]. With both 0 all tokens are written one by one, in one
// turn. CLOSE_AFTER N closes each connection after N answers whose heads said keep-alive, as llama-server
// does after each stream. On SIGTERM it prints one line of JSON: requests, and the percentiles of
// what it did from the last byte of a request (by the kernel's stamp) to the write of its first token, and between tokens.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 65536, KEPT_MAX = 1 << 24, HEAP_MAX = 1 << 20 };

struct connection {
    char input[16384];
    int used, token, answers, open;
    unsigned generation;
    uint64_t arrived, received, last;
};
struct due { uint64_t at; int fd; unsigned generation; };

static struct connection *connections[CONNECTIONS_MAX];
static struct due heap[HEAP_MAX];
static int heap_len;
static uint64_t ttft_ns, gap_ns;
static int tokens, close_after;
static uint64_t requests;
static uint32_t *firsts, *gaps;
static size_t firsts_len, gaps_len;
static volatile sig_atomic_t stop;

static void on_term(int signal) { (void)signal; stop = 1; }
static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
// Reads what there is, and notes when the kernel had the last of it: what a request waits while others are read is the
// stub's own delay, and belongs to the truth.
static ssize_t read_stamped(int fd, char *buffer, size_t room, uint64_t *arrived) {
    char control[64];
    struct iovec slice = { buffer, room };
    struct msghdr message = { .msg_iov = &slice, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    ssize_t got = recvmsg(fd, &message, 0);
    *arrived = now_ns();
    struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : 0;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_TIMESTAMPNS) {
        struct timespec stamp, now;
        memcpy(&stamp, CMSG_DATA(head), sizeof stamp);
        clock_gettime(CLOCK_REALTIME, &now);
        int64_t ago = (int64_t)(now.tv_sec - stamp.tv_sec) * 1000000000 + (now.tv_nsec - stamp.tv_nsec);
        if (ago > 0 && ago < 1000000000) *arrived -= (uint64_t)ago;
    }
    return got;
}
static void push(uint64_t at, int fd, unsigned generation) {
    if (heap_len == HEAP_MAX) { fprintf(stderr, "stub: too many streams\n"); exit(1); }
    int i = heap_len++;
    while (i > 0 && heap[(i - 1) / 2].at > at) { heap[i] = heap[(i - 1) / 2]; i = (i - 1) / 2; }
    heap[i] = (struct due){ at, fd, generation };
}
static struct due pop(void) {
    struct due top = heap[0], last = heap[--heap_len];
    int i = 0;
    for (;;) {
        int child = 2 * i + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}
static void send_all(int fd, const char *text, size_t len) {
    if (send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len && errno != EPIPE && errno != ECONNRESET) perror("stub: send");
}
static int chunk(char *out, const char *event) { return sprintf(out, "%zx\r\n%s\r\n", strlen(event), event); }

static void finish(int fd, struct connection *c) {
    char event[256], out[512];
    sprintf(event, "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", tokens, tokens + 16);
    int len = chunk(out, event);
    len += chunk(out + len, "data: [DONE]\n\n");
    len += sprintf(out + len, "0\r\n\r\n");
    send_all(fd, out, (size_t)len);
    c->token = -1;
    if (close_after && ++c->answers >= close_after) { c->open = 0; close(fd); }
}
// Writes the next token.
static void token(int fd, struct connection *c) {
    char event[256], out[512];
    sprintf(event, "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" w%d\"},\"finish_reason\":null}]}\n\n", c->token % 10);
    int len = chunk(out, event);
    send_all(fd, out, (size_t)len);
    uint64_t now = now_ns();
    if (c->token == 0) { if (firsts_len < KEPT_MAX) firsts[firsts_len++] = (uint32_t)((now - c->received) / 100); }
    else if (gaps_len < KEPT_MAX) gaps[gaps_len++] = (uint32_t)((now - c->last) / 100);
    c->last = now;
    if (++c->token == tokens) finish(fd, c);
}
static void answer(int fd, struct connection *c) {
    char out[512];
    int len = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n");
    len += chunk(out + len, "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n");
    requests++;
    c->token = 0;
    send_all(fd, out, (size_t)len);
    if (ttft_ns || gap_ns) push(c->received + ttft_ns, fd, c->generation);
    else while (c->open && c->token >= 0) token(fd, c);
}
static void plain(int fd, int status, const char *body) {
    char out[512];
    int len = sprintf(out, "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
    send_all(fd, out, (size_t)len);
}
static void step(int fd, struct connection *c) {
    for (;;) {
        c->input[c->used] = 0;
        char *end = strstr(c->input, "\r\n\r\n");
        if (!end || c->token >= 0 || !c->open) return;
        char *length = strcasestr(c->input, "content-length:");
        int body = length && length < end ? atoi(length + 15) : 0;
        int whole = (int)(end + 4 - c->input) + body;
        if (whole > (int)sizeof c->input - 1) { c->open = 0; close(fd); return; }
        if (c->used < whole) return;
        int post = !strncmp(c->input, "POST", 4), models = !!strstr(c->input, "/models");
        memmove(c->input, c->input + whole, (size_t)(c->used - whole));
        c->used -= whole;
        c->received = c->arrived;
        if (post) answer(fd, c);
        else if (models) plain(fd, 200, "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\"}]}");
        else plain(fd, 404, "{\"error\":{\"message\":\"no\"}}");
    }
}
static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}
static void tell(const char *name, uint32_t *values, size_t len) {
    qsort(values, len, sizeof *values, ascending);
    printf("\"%s\":{\"n\":%zu", name, len);
    if (len) printf(",\"p50\":%.4f,\"p99\":%.4f,\"max\":%.4f", values[len / 2] / 1e4, values[len * 99 / 100] / 1e4, values[len - 1] / 1e4);
    printf("}");
}
int main(int argc, char **argv) {
    if (argc < 5) { fprintf(stderr, "usage: stub PORT TTFT_US GAP_US TOKENS [CLOSE_AFTER]\n"); return 2; }
    ttft_ns = strtoull(argv[2], 0, 10) * 1000, gap_ns = strtoull(argv[3], 0, 10) * 1000;
    tokens = atoi(argv[4]), close_after = argc > 5 ? atoi(argv[5]) : 0;
    firsts = malloc(KEPT_MAX * sizeof *firsts), gaps = malloc(KEPT_MAX * sizeof *gaps);
    prctl(PR_SET_TIMERSLACK, 1000);
    struct sigaction action = { .sa_handler = on_term };
    sigaction(SIGTERM, &action, 0), sigaction(SIGINT, &action, 0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 4096)) { perror("stub: listening"); return 1; }
    getsockname(listener, (struct sockaddr *)&at, &size);
    fprintf(stderr, "listening on http://127.0.0.1:%d\n", ntohs(at.sin_port));
    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener };
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer;
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    static struct epoll_event ready[512];
    while (!stop) {
        if (heap_len) {
            uint64_t at_ns = heap[0].at;
            struct itimerspec spec = { .it_value = { (time_t)(at_ns / 1000000000u), (long)(at_ns % 1000000000u) } };
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, 0);
        }
        int count = epoll_wait(epoll, ready, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == timer) { uint64_t fired; if (read(timer, &fired, 8) < 0) continue; continue; }
            if (fd == listener) {
                int peer;
                while ((peer = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    if (peer >= CONNECTIONS_MAX) { close(peer); continue; }
                    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    setsockopt(peer, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
                    struct connection *c = connections[peer];
                    if (!c) c = connections[peer] = calloc(1, sizeof *c);
                    c->generation++, c->used = 0, c->token = -1, c->answers = 0, c->open = 1;
                    event = (struct epoll_event){ .events = EPOLLIN, .data.fd = peer };
                    epoll_ctl(epoll, EPOLL_CTL_ADD, peer, &event);
                }
                continue;
            }
            struct connection *c = connections[fd];
            if (!c->open) continue;
            ssize_t got = read_stamped(fd, c->input + c->used, sizeof c->input - 1 - (size_t)c->used, &c->arrived);
            if (got <= 0) { if (got == 0 || errno != EAGAIN) { c->open = 0; close(fd); } continue; }
            c->used += (int)got;
            step(fd, c);
        }
        while (heap_len && heap[0].at <= now_ns()) {
            struct due due = pop();
            struct connection *c = connections[due.fd];
            if (!c->open || c->generation != due.generation || c->token < 0) continue;
            token(due.fd, c);
            if (c->open && c->token >= 0) push(due.at + gap_ns, due.fd, due.generation);
            else if (c->open) step(due.fd, c);
        }
    }
    printf("{\"requests\":%llu,", (unsigned long long)requests);
    tell("ttft_ms", firsts, firsts_len), printf(",");
    tell("itl_ms", gaps, gaps_len), printf("}\n");
    return 0;
}
