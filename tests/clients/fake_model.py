"""An upstream that misbehaves as real ones do, chosen by the model's name. It depends on nothing.

Behind Freehold, none of this may reach an unmodified client as anything but an answer or a proper error.
"""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SILENCE = 90.0
WORDS = ["A ", "freehold ", "is ", "held ", "by ", "its ", "owner ", "alone."]

MODELS = [
    "plain", "no-usage", "usage-in-last-choice", "no-done", "json-only", "reasoning", "tools", "tools-no-index",
    "tools-from-seven", "tools-all-zero", "tools-repeat-id", "tools-stop", "tools-whole", "late-error", "cut",
    "truncated", "limited-once", "limited", "quota", "bad-request", "bad-key", "broken", "silent-start",
    "silent-middle", "echo-request", "object", "vectors", "hang",
]


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.calls = {}
        self.gone = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def count(self, model):
        with self.lock:
            self.calls[model] = self.calls.get(model, 0) + 1
            return self.calls[model]

    def handle_error(self, request, client_address):
        pass  # a client that left


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/gone":
            return self.json({"gone": self.server.gone})
        self.json({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/embeddings"):
            return self.embed(body)
        model = body["model"]
        behave = getattr(self, "do_" + model.replace("-", "_"), None)
        if behave is None:
            return self.refuse(404, "model_not_found", "no such model")
        behave(body, self.server.count(model))

    # Answers as they should be.

    def json(self, value, status=200, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status, code, message, kind="invalid_request_error", headers=()):
        error = {"message": message, "type": kind, "param": None, "code": code}
        self.json({"error": error}, status, headers)

    def begin(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def raw(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def chunk(self, delta=None, finish=None, usage=None, choices=None, **more):
        if choices is None:
            choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish}]
        body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "upstream-name", "choices": choices}
        if usage is not None:
            body["usage"] = usage
        body.update(more)
        self.raw(f"data: {json.dumps(body)}\n\n".encode())

    def done(self):
        self.raw(b"data: [DONE]\n\n")
        self.end()

    def end(self):
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def cut(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def words(self, words=WORDS):
        for word in words:
            self.chunk({"content": word})

    USAGE = {"prompt_tokens": 11, "completion_tokens": 8, "total_tokens": 19, "prompt_tokens_details": {"cached_tokens": 4}}

    # Texts.

    def do_plain(self, body, _):
        self.begin()
        self.chunk({"role": "assistant", "content": ""})
        self.words()
        self.chunk({}, "stop")
        self.chunk(choices=[], usage=self.USAGE)
        self.done()

    def do_no_usage(self, body, _):
        self.begin()
        self.words()
        self.chunk({}, "stop")
        self.done()

    def do_usage_in_last_choice(self, body, _):
        self.begin()
        self.words()
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()

    def do_no_done(self, body, _):
        self.begin()
        self.words()
        self.chunk({}, "stop", usage=self.USAGE)
        self.end()

    def do_json_only(self, body, _):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self.json({"id": "x", "object": "chat.completion", "choices": choices, "usage": self.USAGE})

    def do_reasoning(self, body, _):
        self.begin()
        self.chunk({"role": "assistant", "reasoning_content": "Let me think. "})
        self.words()
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()

    def do_echo_request(self, body, _):
        """Says what arrived, as JSON: how clients' parameters reach the upstream."""
        kept = {name: value for name, value in body.items() if name not in ("messages", "stream", "stream_options")}
        contents = [message.get("content") for message in body["messages"]]
        roles = [message["role"] for message in body["messages"]]
        self.begin()
        self.chunk({"content": json.dumps({"parameters": kept, "contents": contents, "roles": roles})})
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()

    def do_object(self, body, _):
        """An object of the schema that was asked for, which has a field `text`."""
        self.begin()
        self.chunk({"content": json.dumps({"text": body["response_format"]["json_schema"]["name"]})})
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()

    # Tools, with odd indexes.

    def results(self, body):
        return [message["content"] for message in body["messages"] if message["role"] == "tool"]

    def answer_with_results(self, body):
        results = self.results(body)
        if not results:
            return False
        self.begin()
        self.chunk({"content": "Result: " + " and ".join(results)})
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()
        return True

    def call(self, index, number, arguments=None, first=True):
        call = {} if index is None else {"index": index}
        if first:
            call.update(id=f"call_{number}", type="function")
        function = {"name": "get_weather"} if first else {}
        if arguments is not None:
            function["arguments"] = arguments
        call["function"] = function
        self.chunk({"tool_calls": [call]})

    PIECES = (('{"ci', 'ty":"Bern"}'), ('{"city"', ':"Chur"}'))

    def do_tools(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        self.chunk({"role": "assistant", "content": None})
        for number, pieces in enumerate(self.PIECES):
            self.call(number, number, "")
            for piece in pieces:
                self.call(number, number, piece, first=False)
        self.chunk({}, "tool_calls", usage=self.USAGE)
        self.done()

    def do_tools_no_index(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        for number, pieces in enumerate(self.PIECES):
            self.call(None, number, "")
            for piece in pieces:
                self.call(None, number, piece, first=False)
        self.chunk({}, "tool_calls")
        self.done()

    def do_tools_from_seven(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        for number, pieces in enumerate(self.PIECES):
            self.call(7 + 2 * number, number, "")
            for piece in pieces:
                self.call(7 + 2 * number, number, piece, first=False)
        self.chunk({}, "tool_calls")
        self.done()

    def do_tools_all_zero(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        for number, pieces in enumerate(self.PIECES):
            self.call(0, number, "".join(pieces))
        self.chunk({}, "tool_calls")
        self.done()

    def do_tools_repeat_id(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        for number, pieces in enumerate(self.PIECES):
            for piece in pieces:
                self.call(number, number, piece)
        self.chunk({}, "tool_calls")
        self.done()

    def do_tools_stop(self, body, _):
        if self.answer_with_results(body):
            return
        self.begin()
        for number, pieces in enumerate(self.PIECES):
            self.call(number, number, "".join(pieces))
        self.chunk({}, "stop")
        self.done()

    def do_tools_whole(self, body, _):
        if self.answer_with_results(body):
            return
        calls = [
            {"id": f"call_{n}", "type": "function", "function": {"name": "get_weather", "arguments": "".join(pieces)}}
            for n, pieces in enumerate(self.PIECES)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        self.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": self.USAGE})

    # Failures.

    def do_late_error(self, body, _):
        self.begin()
        self.words(WORDS[:4])
        self.raw(b'data: {"error":{"message":"sk-upstream fell over","type":"server_error","code":null}}\n\n')
        self.end()

    def do_cut(self, body, _):
        self.begin()
        self.words(WORDS[:4])
        time.sleep(0.05)
        self.cut()

    def do_truncated(self, body, _):
        self.begin()
        self.words(WORDS[:4])
        self.end()

    def do_limited_once(self, body, call):
        # Longer than Freehold waits itself, so that the client has to.
        if call % 2:
            return self.refuse(429, "rate_limit_exceeded", "slow down", "requests", [("retry-after", "6")])
        self.do_plain(body, call)

    def do_limited(self, body, _):
        self.refuse(429, "rate_limit_exceeded", "slow down", "requests", [("retry-after", "17")])

    def do_quota(self, body, _):
        self.refuse(429, "insufficient_quota", "no credit", "insufficient_quota")

    def do_bad_request(self, body, _):
        self.refuse(400, None, "sk-upstream says no")

    def do_bad_key(self, body, _):
        self.refuse(401, "invalid_api_key", "bad key sk-upstream")

    def do_broken(self, body, _):
        self.refuse(500, None, "broken", "server_error")

    def do_hang(self, body, _):
        """Speaks until the caller has left."""
        self.begin()
        try:
            while True:
                self.chunk({"content": "on "})
                time.sleep(0.02)
        except OSError:
            with self.server.lock:
                self.server.gone += 1

    # Silence.

    def do_silent_start(self, body, call):
        time.sleep(SILENCE)
        self.do_plain(body, call)

    def do_silent_middle(self, body, _):
        self.begin()
        self.words(WORDS[:4])
        time.sleep(SILENCE)
        self.words(WORDS[4:])
        self.chunk({}, "stop", usage=self.USAGE)
        self.done()

    # Vectors.

    def embed(self, body):
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        size = body.get("dimensions") or 3
        vectors = [[float(len(text)), 0.5, -1.25, *[0.0] * size][:size] for text in texts]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self.json({"object": "list", "data": data, "model": "upstream-name", "usage": usage})


if __name__ == "__main__":
    fake = Fake()
    print(fake.url, flush=True)
    fake.serve_forever()
