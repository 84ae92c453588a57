"""How a benchmark tells the workers of its engines how long a step sleeps: they inherit its environment."""

VARIABLE = "BENCHMARK_STEP_SECONDS"
