"""The edge's client of its clouds: what may be sent, choice of a cloud, verification, streams and split sessions."""
