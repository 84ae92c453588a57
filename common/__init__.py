"""Shared by both servers and every client: configuration, errors, types; HTTP, protocol and decoding below."""
