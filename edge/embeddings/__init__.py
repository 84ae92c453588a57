"""Embeddings by a model of the edge, else by a cloud whose model gives them, and so ranks and scores"""
