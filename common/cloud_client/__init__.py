"""The edge's client of its clouds: choice of a cloud, verification, streams and split sessions."""
