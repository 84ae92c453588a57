"""llama.cpp through its C interface, and checks of GGUF files; no other folder imports llama_cpp."""

import os

# llama.cpp's threads meet some hundred times in a step. By default libgomp's wait some milliseconds in a loop there; on
# a busy machine they then take the core from the thread that they wait for, and a step takes up to 10 times as long.
# libgomp reads this when it is loaded, so it is set before anything imports llama_cpp.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
