"""Shared by both servers and every client: config, errors, types; below it HTTP, protocol, cloud client, decoding."""
