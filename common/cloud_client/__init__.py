"""The edge's way to its clouds: which one is asked, and the verifier, streams and split sessions over HTTP."""
