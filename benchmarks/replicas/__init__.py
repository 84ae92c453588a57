"""Several replicas on Ray: throughput beside one, prefix hits by routing, and answers while replicas are killed."""
