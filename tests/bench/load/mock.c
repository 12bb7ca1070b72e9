/* An OpenAI-compatible server that streams tokens on a set schedule and remembers when it really sent each of them.
 *
 *   mock --ttft-ms 100 --gap-ms 20 --lifetime-s 600 [--port 0] [--model mock] [--text " the"] [--truth FILE] [--stamp]
 *
 * One thread, one epoll. Token k of a request is due at arrival + TTFT + k * gap, whatever happened before. The truth
 * is the time of arrival (the kernel's receive timestamp of the request's last segment, else the clock when it was
 * read) and the clock right before the send() of each token, all CLOCK_MONOTONIC nanoseconds, kept in memory.
 *
 *   POST /v1/chat/completions, /v1/completions   frames as vLLM sends them; max_tokens of the body, or 64, tokens
 *   GET  /v1/models /health                      what clients ask before they start
 *   GET  /truth                                  the truth so far, binary (layout at `truth_header`)
 *   POST /reset                                  forget the requests that have ended
 *   POST /pace                                   {"ttft_ms": 50, "gap_ms": 5} from now on
 *
 * Listens on 127.0.0.1 only. Prints its port on the first line of stdout. Ends on SIGTERM or after its lifetime, writes
 * the truth to FILE then, and dies with its parent. With --stamp the text of each token is the time it was sent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 4096, MAX_EVENTS = 256, READ_BYTES = 1 << 16, FRAME_BYTES = 1024, DEFAULT_TOKENS = 64 };
enum { MAX_TOKENS = 1000000, MAX_REQUEST_BYTES = 1 << 26, ACCEPTS_PER_TURN = 64 };
#define NS_PER_S 1000000000LL
#define TURN_NS 250000

struct request {
  struct connection *connection; /* NULL once ended */
  int64_t arrival_ns, ended_ns;
  int64_t num_tokens, sent; /* asked for, sent so far */
  int chat, usage, usage_in_frames, prompt_tokens;
  int64_t number;
  char frame[FRAME_BYTES]; /* one token as a chunk, the same for all but the last one */
  int frame_length;
  int64_t *sent_ns;
};

struct connection {
  int fd, closing;
  char *in, *out;
  size_t in_length, in_size, out_length, out_offset, out_size;
  struct request *request; /* in progress */
};

/* Layout of the truth: this header, `requests` rows, then `tokens` times of sending, request after request. */
struct truth_header { char magic[8]; int64_t ttft_ns, gap_ns, kernel_arrivals, requests, tokens; };
struct truth_row { int64_t arrival_ns, ended_ns, tokens; }; /* ended_ns is 0 while in flight */

static int64_t ttft_ns = 100000000, gap_ns = 20000000, realtime_offset_ns, kernel_arrivals, next_number;
static int stamped_by_kernel; /* the arrival at hand */
static const char *model = "mock", *text = " the", *truth_file;
static int stamp, epoll_fd, timer_fd, listen_fd;
static volatile sig_atomic_t stopped;
static struct request **requests;
static struct due { int64_t ns; struct request *request; } *heap;
static size_t num_requests, requests_size, heap_length, heap_size;

static int64_t clock_ns(clockid_t id) {
  struct timespec now;
  clock_gettime(id, &now);
  return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void *grown(void *data, size_t *size, size_t needed, size_t item) {
  if (needed <= *size) return data;
  while (*size < needed) *size = *size ? 2 * *size : 64;
  if (!(data = realloc(data, *size * item))) die("realloc");
  return data;
}

/* Monotonic minus real time, from the narrowest of some brackets. */
static void sample_offset(void) {
  int64_t narrowest = INT64_MAX;
  for (int i = 0; i < 10; i++) {
    int64_t before = now_ns(), real = clock_ns(CLOCK_REALTIME), after = now_ns();
    if (after - before >= narrowest) continue;
    narrowest = after - before;
    realtime_offset_ns = before + (after - before) / 2 - real;
  }
}

/* The heap of due requests. */
static void sift_down(struct due moved) {
  size_t at = 0;
  for (size_t child; (child = 2 * at + 1) < heap_length; at = child) {
    if (child + 1 < heap_length && heap[child + 1].ns < heap[child].ns) child++;
    if (moved.ns <= heap[child].ns) break;
    heap[at] = heap[child];
  }
  heap[at] = moved;
}

static void push_due(int64_t ns, struct request *request) {
  heap = grown(heap, &heap_size, heap_length + 1, sizeof *heap);
  size_t at = heap_length++;
  for (; at && heap[(at - 1) / 2].ns > ns; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
  heap[at] = (struct due){ns, request};
}

static void pop_due(void) {
  if (--heap_length) sift_down(heap[heap_length]);
}

/* Sending. What the socket does not take waits in `out`. */
static void watch(struct connection *connection, int operation) {
  uint32_t events = EPOLLIN | (connection->out_offset < connection->out_length ? EPOLLOUT : 0);
  struct epoll_event event = {.events = events, .data.ptr = connection};
  epoll_ctl(epoll_fd, operation, connection->fd, &event);
}

static void send_bytes(struct connection *connection, const char *data, size_t length) {
  if (connection->closing) return;
  int pending = connection->out_offset < connection->out_length;
  ssize_t taken = pending ? 0 : send(connection->fd, data, length, MSG_NOSIGNAL);
  if (taken < 0) taken = 0; /* a client that has left shows in the next read */
  if ((size_t)taken == length) return;
  size_t rest = length - taken;
  connection->out = grown(connection->out, &connection->out_size, connection->out_length + rest, 1);
  memcpy(connection->out + connection->out_length, data + taken, rest);
  connection->out_length += rest;
  if (!pending) watch(connection, EPOLL_CTL_MOD);
}

static void flush_out(struct connection *connection) {
  size_t rest = connection->out_length - connection->out_offset;
  ssize_t taken = send(connection->fd, connection->out + connection->out_offset, rest, MSG_NOSIGNAL);
  if (taken > 0) connection->out_offset += taken;
  if (connection->out_offset < connection->out_length) return;
  connection->out_offset = connection->out_length = 0;
  watch(connection, EPOLL_CTL_MOD);
}

static void answer(struct connection *connection, const char *status, const char *body) {
  char head[256];
  int length = snprintf(head, sizeof head,
                        "HTTP/1.1 %s\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                        status, strlen(body));
  send_bytes(connection, head, length);
  send_bytes(connection, body, strlen(body));
}

/* Frames, as vLLM writes them. */
static int chunk(char *into, size_t size, const char *event) {
  return snprintf(into, size, "%zx\r\n%s\r\n", strlen(event), event);
}

static int usage_json(char *into, size_t size, const struct request *request) {
  return snprintf(into, size, ",\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%lld,\"completion_tokens\":%lld}",
                  request->prompt_tokens, (long long)(request->prompt_tokens + request->sent + 1),
                  (long long)request->sent + 1);
}

/* One frame as a chunk; `delta` is the inside of the delta (chat) or the text (completions), `usage` its usage field. */
static int frame(char *into, size_t size, const struct request *request, const char *choices, const char *usage) {
  char event[FRAME_BYTES];
  snprintf(event, sizeof event,
           "data: {\"id\":\"%s-%032llx\",\"object\":\"%s\",\"created\":1764000000,\"model\":\"%s\",\"choices\":[%s]%s}\n\n",
           request->chat ? "chatcmpl" : "cmpl", (unsigned long long)request->number,
           request->chat ? "chat.completion.chunk" : "text_completion", model, choices, usage);
  return chunk(into, size, event);
}

static int token_frame(char *into, size_t size, const struct request *request, int64_t sent_ns, int last) {
  char choices[256], token[32], usage[128] = "";
  if (stamp) snprintf(token, sizeof token, " %lld", (long long)sent_ns);
  else snprintf(token, sizeof token, "%s", text);
  const char *finish = last ? "\"length\"" : "null";
  if (request->chat)
    snprintf(choices, sizeof choices,
             "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s,\"token_ids\":null}",
             token, finish);
  else
    snprintf(choices, sizeof choices,
             "{\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,\"token_ids\":null}",
             token, finish);
  if (request->usage_in_frames) usage_json(usage, sizeof usage, request);
  return frame(into, size, request, choices, usage);
}

static void send_role(struct request *request, char *into, int *length) {
  const char *role = "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}";
  *length += frame(into + *length, 2 * FRAME_BYTES - *length, request, role, "");
}

static void send_end(struct request *request) {
  char data[2 * FRAME_BYTES], usage[128];
  int length = 0;
  request->sent--; /* usage_json counts the token that is about to be sent */
  if (request->usage) {
    usage_json(usage, sizeof usage, request);
    length = frame(data, sizeof data, request, "", usage);
  }
  request->sent++;
  length += chunk(data + length, sizeof data - length, "data: [DONE]\n\n");
  length += snprintf(data + length, sizeof data - length, "0\r\n\r\n");
  send_bytes(request->connection, data, length);
}

static void handle_input(struct connection *connection, int64_t arrival_ns);

static void send_token(struct request *request) {
  char data[2 * FRAME_BYTES];
  int last = request->sent + 1 == request->num_tokens, length = 0;
  struct connection *connection = request->connection;
  const char *bytes = request->frame;
  if (request->sent == 0 && request->chat) send_role(request, data, &length);
  if (length || last || stamp || request->usage_in_frames) {
    length += token_frame(data + length, sizeof data - length, request, now_ns(), last);
    bytes = data;
  } else {
    length = request->frame_length;
  }
  request->sent_ns[request->sent] = now_ns();
  send_bytes(connection, bytes, length);
  request->sent++;
  if (!last) {
    sift_down((struct due){request->arrival_ns + ttft_ns + request->sent * gap_ns, request});
    return;
  }
  pop_due();
  send_end(request);
  request->ended_ns = now_ns();
  request->connection = NULL;
  connection->request = NULL;
  stamped_by_kernel = 0;
  if (connection->in_length) handle_input(connection, now_ns());
}

/* Requests. A body is searched, not parsed: keys of the protocol do not occur, unescaped, within its texts. */
static const char *value_of(const char *body, const char *key) {
  for (const char *found = body; (found = strstr(found, key)); found++) {
    if (found > body && found[-1] == '\\') continue;
    const char *value = found + strlen(key);
    value += strspn(value, " \t\r\n");
    if (*value == ':') return value + 1 + strspn(value + 1, " \t\r\n");
  }
  return NULL;
}

static int is_true(const char *body, const char *key) {
  const char *value = value_of(body, key);
  return value && strncmp(value, "true", 4) == 0;
}

static int64_t asked_tokens(const char *body) {
  const char *value = value_of(body, "\"max_completion_tokens\"");
  if (!value || *value == 'n') value = value_of(body, "\"max_tokens\"");
  int64_t tokens = value ? atoll(value) : 0;
  return tokens <= 0 ? DEFAULT_TOKENS : tokens > MAX_TOKENS ? MAX_TOKENS : tokens;
}

static void answer_at_once(struct connection *connection, int chat) {
  char body[FRAME_BYTES];
  snprintf(body, sizeof body,
           "{\"id\":\"cmpl-0\",\"object\":\"%s\",\"created\":1764000000,\"model\":\"%s\",\"choices\":[{\"index\":0,%s,"
           "\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}",
           chat ? "chat.completion" : "text_completion", model,
           chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"the\"}" : "\"text\":\"the\"");
  answer(connection, "200 OK", body);
}

static void begin(struct connection *connection, const char *body, int chat, int64_t arrival_ns) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  if (!is_true(body, "\"stream\"")) {
    answer_at_once(connection, chat);
    return;
  }
  struct request *request = calloc(1, sizeof *request);
  if (!request) die("calloc");
  request->num_tokens = asked_tokens(body);
  request->sent_ns = malloc(request->num_tokens * sizeof(int64_t));
  if (!request->sent_ns) die("malloc");
  request->connection = connection;
  request->chat = chat;
  request->usage = is_true(body, "\"include_usage\"");
  request->usage_in_frames = is_true(body, "\"continuous_usage_stats\"");
  request->prompt_tokens = 1 + strlen(body) / 5;
  request->number = next_number++;
  request->frame_length = token_frame(request->frame, FRAME_BYTES, request, 0, 0);
  request->arrival_ns = arrival_ns;
  connection->request = request;
  kernel_arrivals += stamped_by_kernel;
  requests = grown(requests, &requests_size, num_requests + 1, sizeof *requests);
  requests[num_requests++] = request;
  push_due(arrival_ns + ttft_ns, request);
  send_bytes(connection, head, sizeof head - 1);
}

/* The truth as one block of memory. */
static char *dump_truth(size_t *length) {
  struct truth_header header = {"erhpctr1", ttft_ns, gap_ns, kernel_arrivals, num_requests, 0};
  for (size_t i = 0; i < num_requests; i++) header.tokens += requests[i]->sent;
  *length = sizeof header + num_requests * sizeof(struct truth_row) + header.tokens * sizeof(int64_t);
  char *block = malloc(*length);
  if (!block) die("malloc");
  memcpy(block, &header, sizeof header);
  struct truth_row *rows = (struct truth_row *)(block + sizeof header);
  int64_t *times = (int64_t *)(rows + num_requests);
  for (size_t i = 0; i < num_requests; i++) {
    struct request *request = requests[i];
    rows[i] = (struct truth_row){request->arrival_ns, request->ended_ns, request->sent};
    memcpy(times, request->sent_ns, request->sent * sizeof(int64_t));
    times += request->sent;
  }
  return block;
}

static void answer_truth(struct connection *connection) {
  char head[256];
  size_t length;
  char *block = dump_truth(&length);
  int head_length = snprintf(
      head, sizeof head,
      "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/octet-stream\r\ncontent-length: %zu\r\n\r\n", length);
  send_bytes(connection, head, head_length);
  send_bytes(connection, block, length);
  free(block);
}

static void reset(void) {
  size_t kept = 0;
  for (size_t i = 0; i < num_requests; i++) {
    if (requests[i]->connection) {
      requests[kept++] = requests[i];
      continue;
    }
    free(requests[i]->sent_ns);
    free(requests[i]);
  }
  num_requests = kept;
  kernel_arrivals = 0;
}

static void set_pace(const char *body) {
  const char *ttft_ms = value_of(body, "\"ttft_ms\""), *gap_ms = value_of(body, "\"gap_ms\"");
  if (ttft_ms) ttft_ns = atof(ttft_ms) * 1e6;
  if (gap_ms) gap_ns = atof(gap_ms) * 1e6;
}

static void dispatch(struct connection *connection, const char *head, const char *body, int64_t arrival_ns) {
  char method[8] = "", path[256] = "", models[512];
  sscanf(head, "%7s %255s", method, path);
  path[strcspn(path, "?")] = 0;
  if (!strcmp(path, "/v1/chat/completions") && !strcmp(method, "POST")) begin(connection, body, 1, arrival_ns);
  else if (!strcmp(path, "/v1/completions") && !strcmp(method, "POST")) begin(connection, body, 0, arrival_ns);
  else if (!strcmp(path, "/truth")) answer_truth(connection);
  else if (!strcmp(path, "/reset")) reset(), answer(connection, "200 OK", "{}");
  else if (!strcmp(path, "/pace")) set_pace(body), answer(connection, "200 OK", "{}");
  else if (!strcmp(path, "/health")) answer(connection, "200 OK", "{}");
  else if (!strcmp(path, "/v1/models")) {
    snprintf(models, sizeof models,
             "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1764000000,"
             "\"owned_by\":\"mock\",\"root\":\"%s\",\"max_model_len\":131072}]}", model, model);
    answer(connection, "200 OK", models);
  } else answer(connection, "404 Not Found", "{\"error\":{\"message\":\"no such path\",\"code\":404}}");
}

/* Bytes of the body by its content-length header; the head ends with an empty line and is NUL-terminated. */
static size_t body_length(const char *head) {
  for (const char *line = head; (line = strchr(line, '\n')); ) {
    line++;
    if (!strncasecmp(line, "content-length:", 15)) return strtoull(line + 15, NULL, 10);
  }
  return 0;
}

static void handle_input(struct connection *connection, int64_t arrival_ns) {
  while (!connection->request && connection->in_length) {
    connection->in[connection->in_length] = 0;
    char *end = strstr(connection->in, "\r\n\r\n");
    if (!end) return;
    end[2] = 0;
    size_t head_length = end + 4 - connection->in, length = body_length(connection->in);
    end[2] = '\r';
    if (length > MAX_REQUEST_BYTES) {
      connection->closing = 1;
      return;
    }
    size_t total = head_length + length;
    if (connection->in_length < total) return;
    char after = connection->in[total];
    connection->in[total] = 0;
    dispatch(connection, connection->in, connection->in + head_length, arrival_ns);
    connection->in[total] = after;
    connection->in_length -= total;
    memmove(connection->in, connection->in + total, connection->in_length);
  }
}

static void end_connection(struct connection *connection) {
  struct request *request = connection->request;
  if (request) {
    size_t at = 0;
    while (heap[at].request != request) at++;
    for (; at; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2]; /* to the top, and out */
    pop_due();
    request->ended_ns = now_ns();
    request->connection = NULL;
  }
  close(connection->fd);
  free(connection->in);
  free(connection->out);
  free(connection);
}

static int64_t arrival_of(struct msghdr *message) {
  int64_t now = now_ns();
  stamped_by_kernel = 0;
  for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_TIMESTAMPNS) continue;
    struct timespec stamped;
    memcpy(&stamped, CMSG_DATA(part), sizeof stamped);
    int64_t arrival_ns = stamped.tv_sec * NS_PER_S + stamped.tv_nsec + realtime_offset_ns;
    if (arrival_ns > now || arrival_ns < now - 60 * NS_PER_S) break; /* the clock was set */
    stamped_by_kernel = 1;
    return arrival_ns;
  }
  return now;
}

static void receive(struct connection *connection) {
  size_t needed = connection->in_length + READ_BYTES + 1;
  connection->in = grown(connection->in, &connection->in_size, needed, 1);
  char control[128];
  struct iovec piece = {connection->in + connection->in_length, READ_BYTES};
  struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(connection->fd, &message, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got > 0) {
    connection->in_length += got;
    handle_input(connection, arrival_of(&message));
  }
  if (got <= 0 || connection->closing) end_connection(connection);
}

static void accept_some(void) {
  int on = 1;
  for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection) die("calloc");
    connection->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    watch(connection, EPOLL_CTL_ADD);
  }
}

static int listen_at(int port) {
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof address;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  /* Accepted sockets inherit it, so that a request that comes before accept() is stamped too. */
  setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, BACKLOG)) die("listen");
  getsockname(fd, (struct sockaddr *)&address, &length);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  return fd;
}

static void arm_timer(int64_t due_ns) {
  static int64_t armed_ns;
  if (due_ns == armed_ns) return;
  armed_ns = due_ns;
  struct itimerspec at = {.it_value = {due_ns / NS_PER_S, due_ns % NS_PER_S}};
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void serve_until(int64_t end_ns) {
  struct epoll_event events[MAX_EVENTS];
  for (int64_t now = now_ns(), sampled_ns = 0; !stopped && now < end_ns; now = now_ns()) {
    if (now - sampled_ns > NS_PER_S) sample_offset(), sampled_ns = now;
    /* Tokens due within TURN_NS of the last turn go together: a timer for each would cost as much as sending it. */
    int64_t next_ns = heap_length && heap[0].ns < end_ns ? heap[0].ns : end_ns;
    arm_timer(next_ns > now + TURN_NS || next_ns <= now ? next_ns : now + TURN_NS);
    int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
    for (int i = 0; i < count; i++) {
      struct connection *connection = events[i].data.ptr;
      if (connection == (void *)&listen_fd) accept_some();
      else if (connection == (void *)&timer_fd) continue;
      else {
        if (events[i].events & EPOLLOUT) flush_out(connection);
        if (events[i].events & ~EPOLLOUT) receive(connection);
      }
    }
    while (heap_length && heap[0].ns <= now_ns()) send_token(heap[0].request);
  }
}

static void stop(int signal) {
  (void)signal;
  stopped = 1;
}

static void write_truth(void) {
  size_t length;
  char *block = dump_truth(&length);
  FILE *file = fopen(truth_file, "wb");
  if (!file || fwrite(block, 1, length, file) != length || fclose(file)) die(truth_file);
}

static void raise_limits(void) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  prctl(PR_SET_TIMERSLACK, 1);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"ttft-ms", 1, 0, 't'}, {"gap-ms", 1, 0, 'g'}, {"lifetime-s", 1, 0, 'l'}, {"port", 1, 0, 'p'},
      {"model", 1, 0, 'm'},   {"text", 1, 0, 'x'},   {"truth", 1, 0, 'f'},      {"stamp", 0, 0, 's'}, {0}};
  double lifetime_s = 0;
  int port = 0;
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (option == 't') ttft_ns = atof(optarg) * 1e6;
    else if (option == 'g') gap_ns = atof(optarg) * 1e6;
    else if (option == 'l') lifetime_s = atof(optarg);
    else if (option == 'p') port = atoi(optarg);
    else if (option == 'm') model = optarg;
    else if (option == 'x') text = optarg;
    else if (option == 'f') truth_file = optarg;
    else if (option == 's') stamp = 1;
    else return 2;
  }
  if (lifetime_s <= 0) {
    fputs("--lifetime-s must be given and be positive\n", stderr);
    return 2;
  }
  raise_limits();
  struct sigaction on_stop = {.sa_handler = stop};
  sigaction(SIGTERM, &on_stop, NULL);
  sigaction(SIGINT, &on_stop, NULL);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  listen_fd = listen_at(port);
  struct epoll_event listening = {.events = EPOLLIN, .data.ptr = &listen_fd};
  struct epoll_event timing = {.events = EPOLLIN | EPOLLET, .data.ptr = &timer_fd};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &listening);
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &timing);
  serve_until(now_ns() + (int64_t)(lifetime_s * 1e9));
  if (truth_file) write_truth();
  return 0;
}
